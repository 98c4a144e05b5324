"""Which of the colours that a caption names a picture has."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from dpwg.cli import main
from dpwg.data.faces import face, named_colours
from dpwg.data.records import Record, RecordList
from dpwg.measure.colours import EXACT, _lab, codes_fidelity, colour_fidelity, colours_met
from dpwg.method.pipeline import DPWaveletPipeline
from dpwg.method.sampling import Sampling
from dpwg.upsampling.upsamplers import get_upsampler

FACES = [face("test", index) for index in range(24)]


def rgb(code: str) -> np.ndarray:
    return np.uint8([int(code[i : i + 2], 16) for i in (1, 3, 5)])


def test_a_records_own_picture_has_all_colours_of_its_caption_also_noisy():
    noise, parts = np.random.default_rng(0).integers(-9, 10, (128, 128, 3)), set()
    for record in FACES:
        named, picture = named_colours(record.attributes), record.image()
        parts |= named.keys()
        assert len(named) == 4
        assert all(name in record.captions[0].lower() for _, name in named.values())
        for image in (picture, (picture + noise).clip(0, 255).astype(np.uint8)):
            met = colours_met(record, image)
            assert all(met.values())
            assert {"skin", "background"} < met.keys()
    assert parts == {"hair", "hat", "skin", "clothes", "background"}


def test_one_part_of_another_colour_is_seen_and_no_other():
    changed = 0
    for record in FACES:
        own = record.image()
        named = named_colours(record.attributes)
        codes = [palette[name] for palette, name in named.values()]
        for part, (palette, name) in named.items():
            if codes.count(palette[name]) > 1 or part not in colours_met(record, own):
                continue
            another = rgb(next(palette[other] for other in palette if other != name))
            far = np.abs(own.astype(int) - rgb(palette[name])).max(-1, keepdims=True)
            met = colours_met(record, np.where(far > EXACT, own, another))
            assert [p for p, follows in met.items() if not follows] == [part]
            changed += 1
    assert changed > 60


def test_another_record_is_judged_by_its_own_caption_and_nothing_else_is_judged():
    met = [colours_met(a, b.image()) for a, b in itertools.pairwise(FACES)]
    assert np.mean([np.mean(list(verdict.values())) for verdict in met]) < 0.4
    other = Record(image_bytes=FACES[0].image_bytes, captions=("a",), name="dog.png")
    for record, side, words in ((other, 128, r"dog\.png"), (FACES[0], 64, r"\(64, 64, 3\)")):
        with pytest.raises(ValueError, match=words):
            colours_met(record, FACES[0].image(side))


def test_colours_are_compared_in_cielab():
    for colour, lab in (
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((255, 255, 255), (100, 0, 0)),
        ((8, 8, 8), (2.19, 0, 0)),
    ):
        assert _lab(np.array(colour)) == pytest.approx(np.array(lab), abs=0.05)


def test_a_checkpoint_is_judged_by_what_it_draws(root, make_tokenizer):
    pipeline = DPWaveletPipeline.from_pretrained(root / "faces" / "eps-1")
    records, settings = RecordList("faces-test", "0", FACES), Sampling(temperature=0.9)
    found = colour_fidelity(pipeline, records, settings, 5, "bicubic")
    captions = [record.captions[0] for record in FACES[:5]]
    drawn = pipeline(captions, seed=0, settings=settings, upsampler="bicubic")
    by_hand = [colours_met(r, i) for r, i in zip(FACES[:5], drawn.image, strict=True)]
    skin = [met["skin"] for met in by_hand if "skin" in met]
    assert found.captions == 5
    assert found.all_parts == np.mean([all(met.values()) for met in by_hand])
    assert found.parts["skin"] == (len(skin), np.mean(skin))
    own = codes_fidelity(make_tokenizer(), get_upsampler("bicubic"), records, 24)
    assert own.captions == 24
    assert sum(count for part, (count, _) in own.parts.items() if part in ("hair", "hat")) <= 24


def test_the_command_writes_what_compare_and_the_readme_show(root, tmp_path, monkeypatch):
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(root))
    monkeypatch.setenv("DPWG_CACHE", str(tmp_path / "cache"))
    assert main(["data", "faces-test", "--count", "6"]) == 0
    path = tmp_path / "colours.json"
    ask = ["evaluate", "--count", "6", "--results", str(path), "--colours"]
    assert main([*ask, "7", "faces/public"]) == 2
    assert not path.exists()
    assert main([*ask, "4", "faces/public", "faces/eps-1"]) == 0
    facts = json.loads(path.read_text())
    rows = [(row["name"], row["captions"], row["candidates"]) for row in facts["checkpoints"]]
    assert rows == [("faces/public", 4, 1), ("faces/eps-1", 4, 1)]  # nothing chooses
    assert facts["own_codes"]["captions"] == 4
    assert facts["sampling"] | {"candidates": Sampling.candidates} == Sampling().to_json()
