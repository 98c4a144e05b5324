"""The same seed gives the same picture: what the shipped checkpoints drew when this was written.

Codes are compared, not pixels: they are drawn in float64, so neither threads nor the machine's
instructions move them, while a pixel may be rounded to either side. `DPWG_GOLDEN=write` writes
`golden.json` anew; do that only with a reason why the same seed may give another picture.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from torch import Tensor

from dpwg.method.pipeline import DPWaveletPipeline
from dpwg.modules import SHIPPED

GOLDEN = Path(__file__).with_name("golden.json")
NAMES = [f"faces/{name}" for name in ("public", "eps-1", "eps-3", "eps-10", "eps-inf")]
CAPTION = "a woman with long brown hair and glasses, smiling"
BESIDE = ("a man with a beard and a hat", "")
SEED = 7


def drawn_sha256(pipe: DPWaveletPipeline, captions: tuple[str, ...], row: int) -> str:
    """SHA-256 of the codes of one image of a batch, coarse to fine, as int32."""
    decoded: list[list[Tensor]] = []
    decode = type(pipe.release.tokenizer).decode

    def watched(codes: list[Tensor]) -> Tensor:
        decoded.append([scale_BPK.clone() for scale_BPK in codes])
        return decode(pipe.release.tokenizer, codes)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pipe.release.tokenizer, "decode", watched)
        seeds = [SEED if place == row else 100 + place for place in range(len(captions))]
        pipe(captions, seed=seeds, upsampler="bicubic")
    assert len(decoded[-1]) == pipe.release.model.config.scales
    digest = hashlib.sha256()
    for scale_BPK in decoded[-1]:
        digest.update(scale_BPK[row].int().contiguous().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_checkpoint_draws_what_it_drew(monkeypatch, name: str) -> None:
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(SHIPPED))
    pipe = DPWaveletPipeline.from_pretrained(name)
    alone = drawn_sha256(pipe, (CAPTION,), 0)
    beside = drawn_sha256(pipe, (BESIDE[0], CAPTION, BESIDE[1]), 1)
    known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("DPWG_GOLDEN") == "write":
        known[name] = alone
        GOLDEN.write_text(json.dumps(known, indent=2) + "\n")
    assert {"alone": alone, "in a batch": beside} == dict.fromkeys(
        ("alone", "in a batch"), known[name]
    )
