"""Upsamplers of `diffusers` by name: which there are, where they lie, and which can be trusted."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Self

from huggingface_hub import constants, try_to_load_from_cache
from pydantic import Field

from dpwg.config import Config, read_json
from dpwg.download import download

VARIABLE = "DPWG_UPSCALE_MODELS"
EMBEDDED = "take the embedded upsampler 'wavelet-sharp'"
NAMES = (
    "sd-x4:NAME (StableDiffusionUpscalePipeline) or ldm:NAME (LDMSuperResolutionPipeline), NAME "
    "being a folder or user/name on the hub; behind it ,steps=N ,revision=R and, for sd-x4, "
    ",noise_level=N ,guidance=G"
)
"""How they are named, for helps and messages."""

_INDEX = "model_index.json"
_DIFFUSERS, _TRANSFORMERS = "diffusion_pytorch_model", "model"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A pipeline of diffusers: its class, and what its folder must hold to be loaded."""

    pipeline: str
    told: str
    steps: int
    options: tuple[str, ...]
    classes: Mapping[str, str]
    weights: Mapping[str, str]
    left_out: tuple[str, ...] = ()


KINDS = {
    "sd-x4": Kind(
        pipeline="StableDiffusionUpscalePipeline",
        told="Stable Diffusion x4, which follows the caption too and wants a GPU",
        steps=75,
        options=("steps", "revision", "noise_level", "guidance"),
        classes={
            "vae": r"diffusers\.AutoencoderKL",
            "text_encoder": r"transformers\.CLIPTextModel",
            "tokenizer": r"transformers\.CLIPTokenizer(Fast)?",
            "unet": r"diffusers\.UNet2DConditionModel",
            "low_res_scheduler": r"diffusers\.DDPMScheduler",
            "scheduler": r"diffusers\.\w+Scheduler",
        },
        weights={"vae": _DIFFUSERS, "text_encoder": _TRANSFORMERS, "unet": _DIFFUSERS},
        left_out=("safety_checker", "feature_extractor", "watermarker"),
    ),
    "ldm": Kind(
        pipeline="LDMSuperResolutionPipeline",
        told="Latent diffusion x4, which sees only the picture and wants a GPU",
        steps=100,
        options=("steps", "revision"),
        classes={
            "vqvae": r"diffusers\.VQModel",
            "unet": r"diffusers\.UNet2DModel",
            "scheduler": r"diffusers\.\w+Scheduler",
        },
        weights={"vqvae": _DIFFUSERS, "unet": _DIFFUSERS},
    ),
}
"""By the first part of a name. `steps` are the authors' own."""


@dataclass(frozen=True, kw_only=True)
class DiffusionSettings(Config):
    """Which model, from a folder or, as "user/name", from the hub, and how it draws.

    `steps` are of denoising an image; 0 takes the authors' own.
    `noise_level` is how much noise blurs the coarse image first: more lets the model invent more.
    It and `guidance`, how closely the caption is followed, are sd-x4's alone.
    """

    kind: Annotated[str, Field(pattern="^(sd-x4|ldm)$")]
    source: Annotated[str, Field(min_length=1)]
    steps: Annotated[int, Field(ge=0, le=1000)] = 0
    revision: Annotated[str, Field(min_length=1)] = "main"
    noise_level: Annotated[int, Field(ge=0, le=1000)] = 20
    guidance: Annotated[float, Field(ge=0, le=100)] = 9.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "steps", self.steps or KINDS[self.kind].steps)

    @classmethod
    def parse(cls, name: str) -> Self:
        """Settings from a name such as "sd-x4:user/name,steps=30"; ValueError for what is none."""
        found = re.fullmatch(rf"({'|'.join(KINDS)}):(.+?)((,\w+=[^,]*)*)", name, re.DOTALL)
        given = dict(o.split("=", 1) for o in found[3].split(",")[1:]) if found else {}
        if found is None or not given.keys() <= set(KINDS[found[1]].options):
            raise ValueError(f"Expected an upsampler as {NAMES}; found {name!r:.200}.")
        return cls.from_json({"kind": found[1], "source": found[2], **given})

    @property
    def name(self) -> str:
        """The shortest name that `parse` reads as these settings."""
        usual = type(self)(kind=self.kind, source=self.source)
        changed = [f for f in fields(self) if getattr(self, f.name) != getattr(usual, f.name)]
        options = "".join(f",{f.name}={getattr(self, f.name)}" for f in changed)
        return f"{self.kind}:{self.source}{options}"

    @property
    def on_hub(self) -> bool:
        """Whether the source can only be a name on the hub."""
        return not Path(self.source).exists() and bool(
            re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", self.source)
        )


def offered() -> list[str]:
    """Names to choose from: those of DPWG_UPSCALE_MODELS, between semicolons, and the hub's cache.

    What cannot be had is left out: a folder that is not whole, and, where the hub is switched off,
    what its cache lacks. No network is asked. Raises ValueError for a name that is none.
    """
    if importlib.util.find_spec("diffusers") is None:
        return []
    named = [
        DiffusionSettings.parse(name.strip())
        for name in os.environ.get(VARIABLE, "").split(";")
        if name.strip()
    ]
    reachable = [s for s in named if _whole(s) or (s.on_hub and not constants.HF_HUB_OFFLINE)]
    sources = {settings.source for settings in named}
    cached = [
        settings
        for path in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*"))
        for kind in KINDS
        if (source := path.name.removeprefix("models--").replace("--", "/")) not in sources
        and _whole(settings := DiffusionSettings(kind=kind, source=source))
    ]
    return [settings.name for settings in (*reachable, *cached)]


def describe(name: str) -> str:
    """One sentence on an upsampler, from its name, to publish."""
    settings = DiffusionSettings.parse(public_name(name))
    return f"{KINDS[settings.kind].told}: {settings.source}, {settings.steps} steps."


def public_name(name: str) -> str:
    """A name to publish: that of a folder without where it is on this machine."""
    if ":" not in name or (settings := DiffusionSettings.parse(name)).on_hub:
        return name
    return replace(settings, source=Path(settings.source).absolute().name).name


def model_folder(settings: DiffusionSettings) -> Path:
    """Where the model is, downloaded if it must be: what it is loaded from, and nothing else."""
    if Path(settings.source).is_dir():
        return Path(settings.source)
    if not settings.on_hub:
        raise FileNotFoundError(
            f"Expected {settings.source!r} to be a folder or, as user/name, a model on the hub; "
            f"name another, or {EMBEDDED}."
        )
    kind = KINDS[settings.kind]
    texts = [f"{part}/{text}" for part in kind.classes for text in ("*.json", "merges.txt")]
    weights = [
        f"{part}/{file}{end}.safetensors"
        for part, file in kind.weights.items()
        for end in ("", "-*-of-*")
    ]
    return download(
        settings.source,
        [_INDEX, *texts, *weights],
        what="upsampler",
        otherwise=EMBEDDED,
        revision=settings.revision,
    )


def _whole(settings: DiffusionSettings) -> bool:
    """Whether a model is on this machine, in a folder or in the hub's cache."""
    folder: Path | None = Path(settings.source)
    if settings.on_hub:
        found = try_to_load_from_cache(settings.source, _INDEX, revision=settings.revision)
        folder = Path(found).parent if isinstance(found, str) else None
    return folder is not None and fault_of(folder, KINDS[settings.kind]) is None


def fault_of(folder: Path, kind: Kind) -> str | None:
    """Why a folder cannot be loaded, or None: other classes than known ones, or no safetensors."""
    index = _read(folder / _INDEX)
    if index.get("_class_name") != kind.pipeline:
        return f"a {index.get('_class_name')}" if index else f"no readable {_INDEX}"
    for part, pattern in kind.classes.items():
        found = index.get(part)
        if not isinstance(found, list) or not re.fullmatch(pattern, ".".join(map(str, found))):
            return f"{part} of {found}"
        # What would let transformers read a model's weights from elsewhere in a folder:
        told = json.dumps(_read(folder / part / "config.json"))  # at any depth, escapes undone
        elsewhere = [n for n in ("transformers_weights", "configuration_files") if f'"{n}"' in told]
        if other := [*elsewhere, *(path.name for path in (folder / part).glob("adapter_*"))]:
            return f"{other[0]!r} in {part}, which is to be removed"
    for part, file in kind.weights.items():
        shards = _read(folder / part / f"{file}.safetensors.index.json").get("weight_map")
        names = shards.values() if isinstance(shards, dict) else [f"{file}.safetensors"]
        for name in sorted(set(map(str, names))):
            known = re.fullmatch(rf"{file}(-\d{{5}}-of-\d{{5}})?\.safetensors", name)
            if not known or not (folder / part / name).is_file():
                return f"no {part}/{name:.80}" if known else f"weights {name!r:.80} in {part}"
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}
