"""Synthetic data sets to share: captions to images, in batches, part by part, with a card.

Image j of caption i has a seed that is a function of (seed, i, j) alone, and the images of a part
are always drawn in the same batches. So a run that was interrupted goes on where it was, and any
division among processes gives the same data set.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData

import dpwg
from dpwg.config import Config
from dpwg.method.pipeline import MAX_SEED, DPWaveletPipeline
from dpwg.method.sampling import Sampling
from dpwg.modules import module_sha256
from dpwg.privacy.accounting import epsilon_text
from dpwg.privacy.card import PrivacyCard
from dpwg.privacy.curves import explain
from dpwg.release.hub import CITATION, LICENSE
from dpwg.release.parts import FORMATS, Row, appear, encode_png, write_text
from dpwg.upsampling.diffusion import public_name
from dpwg.upsampling.superresolution import find_superresolution
from dpwg.upsampling.upsamplers import DEFAULT_UPSAMPLER, get_upsampler, is_embedded

PLAN = "export.json"
CARD = "privacy_card.json"
MAX_BATCH = 1024
SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)


@dataclass(frozen=True, kw_only=True)
class Export(Config):
    """What is drawn: `per_caption` images of every caption, `batch` at a time, `part` in a part.

    A part of a format is a folder, a tar or a Parquet file, and what an interruption can cost.
    """

    captions: tuple[str, ...] = field(repr=False)
    captions_from: str
    per_caption: int = 1
    seed: int = 0
    format: str = "imagefolder"
    upsampler: str = DEFAULT_UPSAMPLER
    batch: int = 64
    part: int = 256
    license: str = LICENSE
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        if not self.captions:
            raise ValueError("Expected at least one caption.")
        for name, low, high in (
            ("per_caption", 1, 10_000_000),
            ("seed", 0, MAX_SEED),
            ("batch", 1, MAX_BATCH),
            ("part", 1, 100_000),
        ):
            if not low <= (value := getattr(self, name)) <= high:
                raise ValueError(f"Expected {name}={value} in [{low}, {high:,}].")
        if self.format not in FORMATS:
            raise ValueError(f"Expected format={self.format!r} in {sorted(FORMATS)}.")
        needs = FORMATS[self.format].needs
        if needs and importlib.util.find_spec(needs) is None:
            raise ModuleNotFoundError(
                f"format={self.format!r} needs {needs}; run `pip install {needs}`, or take another "
                "format."
            )
        get_upsampler(self.upsampler)

    @property
    def images(self) -> int:
        """How many images the data set has."""
        return len(self.captions) * self.per_caption

    @property
    def parts(self) -> int:
        """How many parts it has."""
        return -(-self.images // self.part)

    def indices(self, part: int) -> range:
        """The images of a part."""
        return range(part * self.part, min((part + 1) * self.part, self.images))

    def source(self, index: int) -> tuple[str, dict[str, int]]:
        """An image's caption, and which of its images it is from which seed."""
        i, j = divmod(index, self.per_caption)
        seed = image_seed(self.seed, i, j)
        return self.captions[i], {"seed": seed, "caption_index": i, "image_index": j}


def image_seed(seed: int, caption_index: int, image_index: int) -> int:
    """The seed of image j of caption i, in [0, MAX_SEED]: the first bits of a SHA-256."""
    digest = hashlib.sha256(f"dpwg/export/{seed}/{caption_index}/{image_index}".encode()).digest()
    return int.from_bytes(digest[:4]) & MAX_SEED


def parse_shard(text: str) -> tuple[int, int]:
    """ "i/n" as (i, n) with 0 <= i < n: the i-th of n processes."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    if not found or not (shard := (int(found[1]), int(found[2])))[0] < shard[1]:
        raise ValueError(f"Expected shard={text!r} as i/n with 0 <= i < n, as in 0/4.")
    return shard


def shard_parts(export: Export, shard: tuple[int, int]) -> range:
    """The parts of one process among several: every n-th."""
    return range(shard[0], export.parts, shard[1])


def shard_images(export: Export, shard: tuple[int, int]) -> int:
    """How many images one process among several has to do with."""
    return sum(len(export.indices(part)) for part in shard_parts(export, shard))


def export_dataset(
    pipe: DPWaveletPipeline,
    export: Export,
    folder: Path,
    *,
    checkpoint: str,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[int]:
    """Draw a data set, or the parts of one process among several; yields how many images are there.

    Run it again after an interruption, with the same settings: parts that are there are left alone.
    Captions, card and README appear with the last part, whoever draws it. Memory holds one batch
    and one part's encoded images. Raises ValueError where the folder holds something else.
    """
    _begin(folder, plan := _plan(pipe, export, checkpoint))
    done = 0
    for part in shard_parts(export, shard):
        path = _path(folder, export, part)
        if not path.exists():
            rows: list[Row] = []
            for row in _rows(pipe, export, export.indices(part)):
                rows.append(row)
                if len(rows) % export.batch == 0:
                    yield done + len(rows)
            appear(path, lambda at, rows=rows: FORMATS[export.format].write(at, rows))  # type: ignore[misc]
        done += len(export.indices(part))
        yield done
    if all(_path(folder, export, part).exists() for part in range(export.parts)):
        _finish(folder, export, plan, pipe.release.card)


def _rows(pipe: DPWaveletPipeline, export: Export, indices: range) -> Iterator[Row]:
    for start in range(0, len(indices), export.batch):
        batch = indices[start : start + export.batch]
        sources = [export.source(index) for index in batch]
        result = pipe(
            [caption for caption, _ in sources],
            seed=[source["seed"] for _, source in sources],
            settings=export.sampling,
            upsampler=export.upsampler,
        )
        for index, image, (text, source) in zip(batch, result.image, sources, strict=True):
            yield Row(index=index, image_png=encode_png(image), text=text, **source)


def _path(folder: Path, export: Export, part: int) -> Path:
    return FORMATS[export.format].path(folder, part, export.parts)


def _plan(pipe: DPWaveletPipeline, export: Export, checkpoint: str) -> dict[str, Any]:
    """What every process and every later run must have in common."""
    values = export.to_json()
    captions = json.dumps(values.pop("captions"))
    choice = pipe.choice(export.sampling)
    own = {"wavelet-sharp": "wavelet"}.get(export.upsampler, export.upsampler)
    return {
        **values,
        "sampling": export.sampling.to_json() | {"candidates": choice["candidates"]},
        "reranker": choice["reranker"],
        "upsampler": public_name(export.upsampler),
        "superresolution_sha256": module_sha256(find_superresolution(own))
        if own in ("wavelet", "photo")
        else None,
        "captions": len(export.captions),
        "captions_sha256": hashlib.sha256(captions.encode()).hexdigest(),
        "images": export.images,
        "checkpoint": checkpoint,
        "weights_sha256": pipe.release.weights_sha256,
        "card_sha256": pipe.release.card.sha256,
        "text_encoder_sha256": pipe.release.text_encoder.digest,
        "software": {"dpwg": dpwg.__version__, "torch": _version("torch")},
    }


def _begin(folder: Path, plan: dict[str, Any]) -> None:
    """Keep the plan in a new folder, or see that the folder has the same one."""
    path = folder / PLAN
    if not path.exists():
        if folder.exists() and any(not p.name.startswith(f".{PLAN}") for p in folder.iterdir()):
            raise ValueError(f"Expected out={folder} to be new or an export; name another folder.")
        write_text(path, json.dumps(plan, indent=2, ensure_ascii=False) + "\n")
    kept = json.loads(path.read_text())
    if differing := sorted(n for n in {*kept, *plan} if kept.get(n) != plan.get(n)):
        raise ValueError(
            f"Expected the export in {folder} to go on as it began, found another "
            f"{', '.join(differing)}; see its {PLAN}, or name another folder."
        )


def _finish(folder: Path, export: Export, plan: dict[str, Any], card: PrivacyCard) -> None:
    if export.format == "imagefolder":
        appear(folder / "metadata.jsonl", lambda at: _write_metadata(at, export))
    write_text(folder / CARD, json.dumps(card.to_json(), indent=2, allow_nan=False) + "\n")
    write_text(folder / "README.md", dataset_card(export, plan, card))


def _write_metadata(path: Path, export: Export) -> None:
    """A line an image, as the ImageFolder convention has it."""
    with path.open("w") as lines:
        for part in range(export.parts):
            where = FORMATS[export.format].path(Path(), part, export.parts)
            for index in export.indices(part):
                text, source = export.source(index)
                row = Row(index=index, image_png=b"", text=text, **source)
                name = (where / f"{row.key}.png").as_posix()
                line = json.dumps({"file_name": name, **row.values()}, ensure_ascii=False)
                lines.write(line + "\n")


def dataset_card(export: Export, plan: dict[str, Any], card: PrivacyCard) -> str:
    """The README.md of an exported data set: what it is, epsilon and unit, how to cite, limits.

    `plan` is what the folder holds as `export.json`.
    """
    checkpoint, reranker = plan["checkpoint"], plan["reranker"]
    front = DatasetCardData(
        license=export.license,
        task_categories=["text-to-image"],
        tags=["synthetic", "differential-privacy", "dp-wavelet"],
        pretty_name=f"Synthetic images of {checkpoint}",
        size_categories=[_size(export.images)],
        configs=[
            {
                "config_name": "default",
                "data_files": [
                    {"split": "train", "path": list(FORMATS[export.format].found)},
                ],
            }
        ],
    )
    why = (
        "The images are computed from the released weights, public models and the\n  captions: by "
        "post-processing they tell no more about a record than the weights do, however many\n  are "
        "drawn."
    )
    if card.epsilon is None:
        promise, trained = "**No privacy: there is no bound on epsilon.**", "without privacy"
        why = "Nothing holds: the model may reproduce records, and so may these images."
    elif card.kind == "public":
        promise, trained = "**Epsilon is 0: no sensitive record was seen.**", "on public data"
    else:
        promise = f"**Epsilon is {epsilon_text(card.epsilon)} at delta = {card.delta:g}.**"
        trained = "privately"
    limits = "\n".join(f"- {limit}" for limit in card.limits)
    upsampler = plan["upsampler"]
    if reranker is not None:
        limits += (
            f"\n- Of {plan['sampling']['candidates']} candidates of the coarsest scale a public "
            f"reranker of captions and images, {reranker['source']},\n  kept one. What it knew "
            "before, epsilon does not cover."
        )
    if not is_embedded(export.upsampler):
        limits += (
            f"\n- The upsampler {upsampler} was trained by others, on data that is not known here: "
            "what it knew\n  before, epsilon does not cover."
        )
    return f"""---
{front.to_yaml()}
---

# Synthetic images of {checkpoint}

Images of {len(export.captions):,} captions, {export.per_caption} of each, {export.images:,} in all.
A text-to-image model drew every one of them, by [DP-Wavelet](https://arxiv.org/abs/2602.23262).

## Privacy

{promise} {explain(card.ledger)}

- **Unit.** {card.unit}
- **Adjacency.** {card.adjacency}
- **Private set.** {card.dataset}, {card.records:,} records.
- **What it says of these images.** {why}
- **Captions.** {export.captions_from}. They are not covered by epsilon.

The model's whole card is in `{CARD}`: its epsilon follows from the ledger in it.

## What is in it

{FORMATS[export.format].columns} Images are numbered by caption, then within it. `{PLAN}` has the
checkpoint's digest and every setting, so that each image can be drawn again:

```python
import json
from dpwg.method.pipeline import DPWaveletPipeline
from dpwg.method.sampling import Sampling
from dpwg.modules import module_sha256

plan = json.load(open("{PLAN}"))
pipe = DPWaveletPipeline.from_pretrained(plan["checkpoint"])
if plan["reranker"]:  # another one, or none, keeps other candidates
    assert pipe.reranker.to_json() == plan["reranker"]
settings = Sampling.from_json(plan["sampling"])
pipe(caption, seed=seed, settings=settings, upsampler=plan["upsampler"]).image
```

## Limits

{limits}
- The coarse image comes from the model that was trained {trained}; finer detail is invented by a
  public upsampler ({upsampler}), which sees only what that model released and, if it reads
  captions, the caption.
- A model trained on these images inherits the model's errors and biases.

## Cite

{CITATION}"""


def _size(images: int) -> str:
    names = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M")
    return names[sum(images >= size for size in SIZES)]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def captions_told(source: str, captions: Sequence[str], *, public: bool) -> str:
    """Where captions come from, in words for the card."""
    if source.startswith("public:"):
        return f"Drawn from public templates (`dpwg.data.public`, the first {len(captions):,})"
    if public:
        return f"From `{Path(source).name}`, declared public by its user"
    return f"From `{Path(source).name}`, written or chosen by the user of the model"
