"""Synthetic data sets to share: captions to images, in batches, part by part, with a card.

Image j of caption i has a seed that is a function of (seed, i, j) alone, and the images of a part
are always drawn in the same batches. So a run that was interrupted goes on where it was, and any
division among processes gives the same data set.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from huggingface_hub import DatasetCard, DatasetCardData
from pydantic import Field

import dpwg
from dpwg.config import Config
from dpwg.files import remove, whole
from dpwg.method.pipeline import MAX_SEED, DPWaveletPipeline
from dpwg.method.sampling import Sampling
from dpwg.modules import module_sha256, write_json
from dpwg.privacy.accounting import epsilon_text
from dpwg.privacy.card import PrivacyCard
from dpwg.privacy.curves import explain
from dpwg.release.hub import LICENSE
from dpwg.release.parts import FORMATS, Row, encode_png
from dpwg.upsampling.diffusion_models import public_name
from dpwg.upsampling.superresolution import SUPERRESOLUTIONS, find_superresolution
from dpwg.upsampling.upsamplers import DEFAULT_UPSAMPLER, get_upsampler, is_embedded

PLAN = "export.json"
CARD = "privacy_card.json"
TEMPLATE = Path(__file__).with_name("dataset_card.md.jinja")
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M")


@dataclass(frozen=True, kw_only=True)
class Export(Config):
    """What is drawn: `per_caption` images of every caption, `batch` at a time, `part` in a part.

    A part of a format is a folder, a tar or a Parquet file, and what an interruption can cost.
    """

    captions: Annotated[tuple[str, ...], Field(min_length=1)] = field(repr=False)
    captions_from: str
    per_caption: Annotated[int, Field(ge=1, le=10_000_000)] = 1
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    format: Annotated[str, Field(pattern="^(imagefolder|webdataset|parquet)$")] = "imagefolder"
    upsampler: str = DEFAULT_UPSAMPLER
    batch: Annotated[int, Field(ge=1, le=1024)] = 64
    part: Annotated[int, Field(ge=1, le=100_000)] = 256
    license: str = LICENSE
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        super().__post_init__()
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
        if not (path := _path(folder, export, part)).exists():
            rows: list[Row] = []
            for row in _rows(pipe, export, export.indices(part)):
                rows.append(row)
                if len(rows) % export.batch == 0:
                    yield done + len(rows)
            with whole(path) as partial:
                FORMATS[export.format].write(partial, rows)
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
    found = find_superresolution(own) if own in SUPERRESOLUTIONS else None
    return {
        **values,
        "sampling": export.sampling.to_json() | {"candidates": choice["candidates"]},
        "reranker": choice["reranker"],
        "upsampler": public_name(export.upsampler),
        "superresolution_sha256": None if found is None else module_sha256(found),
        "captions": len(export.captions),
        "captions_sha256": hashlib.sha256(captions.encode()).hexdigest(),
        "images": export.images,
        "checkpoint": checkpoint,
        "weights_sha256": pipe.release.weights_sha256,
        "card_sha256": pipe.release.card.sha256,
        "text_encoder_sha256": pipe.release.text_encoder.digest,
        "software": {"dpwg": dpwg.__version__, "torch": version("torch")},
    }


def _begin(folder: Path, plan: dict[str, Any]) -> None:
    """Keep the plan in a new folder, or see that the folder has the same one."""
    path = folder / PLAN
    if not path.exists():
        if folder.exists() and any(not p.name.startswith(f".{PLAN}") for p in folder.iterdir()):
            raise ValueError(f"Expected out={folder} to be new or an export; name another folder.")
        with whole(path) as partial:
            write_json(partial, plan)
    kept = json.loads(path.read_text())
    if differing := sorted(n for n in {*kept, *plan} if kept.get(n) != plan.get(n)):
        raise ValueError(
            f"Expected the export in {folder} to go on as it began, found another "
            f"{', '.join(differing)}; see its {PLAN}, or name another folder."
        )


def _finish(folder: Path, export: Export, plan: dict[str, Any], card: PrivacyCard) -> None:
    """Write what goes with all parts, and remove what killed processes began of them."""
    names = {_path(folder, export, part).name for part in range(export.parts)}
    for left in _path(folder, export, 0).parent.glob(".*.partial-*"):
        if left.name[1:].rpartition(".partial-")[0] in names:
            remove(left)
    if export.format == "imagefolder":
        with whole(folder / "metadata.jsonl") as partial:
            _write_metadata(partial, export)
    with whole(folder / CARD) as partial:
        write_json(partial, card.to_json())
    with whole(folder / "README.md") as partial:
        partial.write_text(f"{dataset_card(export, plan, card)}")


def _write_metadata(path: Path, export: Export) -> None:
    """A line an image, as the ImageFolder convention has it."""
    with path.open("w") as lines:
        for part in range(export.parts):
            where = _path(Path(), export, part)
            for index in export.indices(part):
                text, source = export.source(index)
                row = Row(index=index, image_png=b"", text=text, **source)
                name = (where / f"{row.key}.png").as_posix()
                line = json.dumps({"file_name": name, **row.values()}, ensure_ascii=False)
                lines.write(line + "\n")


def dataset_card(export: Export, plan: dict[str, Any], card: PrivacyCard) -> DatasetCard:
    """The README.md of an exported data set: what it is, epsilon and unit, how to cite, limits.

    `plan` is what the folder holds as `export.json`.
    """
    epsilon, trained = epsilon_text(card.epsilon), "privately"
    promise = f"Epsilon is {epsilon} at delta = {card.delta:g}"
    if card.epsilon is None:
        promise, trained = "No privacy: there is no bound on epsilon", "without privacy"
    elif card.kind == "public":
        promise, trained = "Epsilon is 0: no sensitive record was seen", "on public data"
    return DatasetCard.from_template(
        DatasetCardData(
            license=export.license,
            task_categories=["text-to-image"],
            tags=["synthetic", "differential-privacy", "dp-wavelet"],
            pretty_name=f"Synthetic images of {plan['checkpoint']}",
            size_categories=[SIZES[min(max(0, len(str(export.images)) - 3), 5)]],
            configs=[
                {
                    "config_name": "default",
                    "data_files": [{"split": "train", "path": list(FORMATS[export.format].found)}],
                }
            ],
        ),
        template_path=str(TEMPLATE),
        card=card,
        export=export,
        plan=plan,
        captions=f"{len(export.captions):,}",
        images=f"{export.images:,}",
        promise=promise,
        meaning=explain(card.ledger),
        trained=trained,
        columns=FORMATS[export.format].columns,
        embedded=is_embedded(export.upsampler),
    )


def captions_told(source: str, captions: Sequence[str], *, public: bool) -> str:
    """Where captions come from, in words for the card."""
    if source.startswith("public:"):
        return f"Drawn from public templates (of this project, the first {len(captions):,})"
    if public:
        return f"From `{Path(source).name}`, declared public by its user"
    return f"From `{Path(source).name}`, written or chosen by the user of the model"
