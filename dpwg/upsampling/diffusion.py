"""Upsamplers by diffusion, from `diffusers`: drawn after a caption and from a seed.

They see what the private stage has released, and the visitor's caption, so that by post-processing
they cost no privacy. `diffusers` is imported by the first image, not before.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Self

import torch
from huggingface_hub import constants, try_to_load_from_cache
from torch import Tensor

from dpwg.download import download
from dpwg.method.captions import quiet
from dpwg.upsampling.images import check_images

VARIABLE = "DPWG_UPSCALE_MODELS"
EMBEDDED = "take the embedded upsampler 'wavelet-sharp'"
NAMES = (
    "sd-x4:NAME (StableDiffusionUpscalePipeline) or ldm:NAME (LDMSuperResolutionPipeline), NAME "
    "being a folder or user/name on the hub; behind it ,steps=N ,revision=R and, for sd-x4, "
    ",noise_level=N ,guidance=G"
)
"""How they are named, for helps and messages."""
SMALL_MEMORY = 8 * 2**30

_INDEX = "model_index.json"
_DIFFUSERS, _TRANSFORMERS = "diffusion_pytorch_model", "model"
_OPTIONS: dict[str, Callable[[str], Any]] = {
    "steps": int,
    "revision": str,
    "noise_level": int,
    "guidance": float,
}


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """A pipeline of diffusers: its class, and what its folder must hold to be loaded."""

    pipeline: str
    told: str
    steps: int
    options: tuple[str, ...]
    classes: Mapping[str, str]
    weights: Mapping[str, str]
    left_out: tuple[str, ...] = ()


KINDS = {
    "sd-x4": _Kind(
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
    "ldm": _Kind(
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
class DiffusionSettings:
    """Which model, from a folder or, as "user/name", from the hub, and how it draws.

    `steps` are of denoising an image; 0 takes the authors' own.
    `noise_level` is how much noise blurs the coarse image first: more lets the model invent more.
    It and `guidance`, how closely the caption is followed, are sd-x4's alone.
    """

    kind: str
    source: str
    steps: int = 0
    revision: str = "main"
    noise_level: int = 20
    guidance: float = 9.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Expected kind={self.kind!r} in {list(KINDS)}.")
        if not self.source or not self.revision:
            raise ValueError(f"Expected an upsampler as {NAMES}.")
        for name, low, high in (("steps", 0, 1000), ("noise_level", 0, 1000), ("guidance", 0, 100)):
            if not low <= (value := getattr(self, name)) <= high:
                raise ValueError(f"Expected {name}={value} in [{low}, {high}].")
        if not self.steps:
            object.__setattr__(self, "steps", KINDS[self.kind].steps)

    @classmethod
    def parse(cls, name: str) -> Self:
        """Settings from a name such as "sd-x4:user/name,steps=30"; ValueError for what is none."""
        found = re.fullmatch(rf"({'|'.join(KINDS)}):(.*?)((,\w+=[^,]*)*)", name, re.DOTALL)
        if found is None:
            raise ValueError(f"Expected an upsampler as {NAMES}; found {name!r:.200}.")
        kind, source, rest, _ = found.groups()
        given = dict(option.split("=", 1) for option in rest.split(",")[1:])
        if unknown := sorted(set(given) - set(KINDS[kind].options)):
            raise ValueError(f"Expected no {unknown} in {name!r:.200}, see {KINDS[kind].options}.")
        try:
            values = {key: _OPTIONS[key](value) for key, value in given.items()}
        except ValueError as error:
            raise ValueError(f"Expected numbers in {name!r:.200}: {error}.") from None
        return cls(kind=kind, source=source, **values)

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


class DiffusionUpsampler:
    """A pipeline of diffusers as an upsampler to four times the size; loaded by the first call.

    Every image is drawn alone, from a generator of its own seed on the CPU: it is the same in any
    batch, and its noise the same on any device. The device is a GPU where there is one; `dtype` is
    float32, and float16 for sd-x4 on CUDA, whose decoder stays in float32. `sliced` computes
    attention in slices and decodes in tiles; None does so on a GPU with less than SMALL_MEMORY.
    Any number of threads may call it. Only safetensors are read, from files that were
    checked by name. Raises FileNotFoundError or ValueError where there is nothing to load, and
    ModuleNotFoundError without `diffusers`.
    """

    scale = 4

    def __init__(
        self,
        settings: DiffusionSettings,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        sliced: bool | None = None,
    ) -> None:
        self.name, self.settings, self.sliced = settings.name, settings, sliced
        self.device = torch.device(device or _best_device())
        half = self.device.type == "cuda" and settings.kind == "sd-x4"
        self.dtype = dtype or (torch.float16 if half else torch.float32)
        self._loading = Lock()

    def __call__(self, image_BCHW: Tensor) -> Tensor:
        """Without captions, all from seed 0."""
        count = len(image_BCHW)
        *_, images = self.draw(image_BCHW, captions=[""] * count, seeds=[0] * count)
        assert isinstance(images, Tensor)
        return images

    def draw(
        self, image_BCHW: Tensor, *, captions: Sequence[str], seeds: Sequence[int]
    ) -> Iterator[tuple[int, int] | Tensor]:
        """Yields how many steps are done, of how many, and at last the images."""
        check_images(image_BCHW)
        count, done = len(image_BCHW), 0
        if not len(captions) == len(seeds) == count:
            raise ValueError(
                f"Expected {count} captions and seeds, found {len(captions)} and {len(seeds)}."
            )
        with self._loading:
            side = 1 << (len(self._pipe.unet.config.block_out_channels) - 1)
        if any(length % side for length in image_BCHW.shape[2:]):
            raise ValueError(
                f"Expected sides that {side} divides, found {tuple(image_BCHW.shape[2:])}; "
                "resize the images, or choose the upsampler 'bicubic'."
            )
        large = []
        for image_1CHW, caption, seed in zip(image_BCHW.split(1), captions, seeds, strict=True):
            for drawn in self._draw_one(image_1CHW, caption, seed):
                if isinstance(drawn, Tensor):
                    large.append(drawn)
                else:
                    done += 1
                    yield done, count * drawn
        yield torch.cat(large).to(image_BCHW.device)

    @torch.no_grad()
    def _draw_one(self, image_1CHW: Tensor, caption: str, seed: int) -> Iterator[int | Tensor]:
        """Yields the number of steps at each, then the image: as the pipeline's own loop draws it.

        The scheduler is a copy, since it keeps where it is: a loop that is left leaves nothing.
        """
        from diffusers.utils.torch_utils import randn_tensor

        pipe, scheduler = self._pipe, copy.deepcopy(self._pipe.scheduler)
        scheduler.set_timesteps(self.settings.steps, device=self.device)
        generator = torch.Generator().manual_seed(seed)

        def noise(channels: int) -> Tensor:
            shape = (1, channels, *image_1CHW.shape[2:])
            drawn: Tensor = randn_tensor(shape, generator, self.device, self.dtype)
            return drawn

        image_1CHW = (image_1CHW * 2 - 1).to(self.device, self.dtype)
        follows, guidance, condition = self.settings.kind == "sd-x4", 1.0, {}
        if follows:
            guidance = self.settings.guidance
            level = torch.tensor([self.settings.noise_level], device=self.device)
            image_1CHW = pipe.low_res_scheduler.add_noise(image_1CHW, noise(3), level)
            caption = caption.encode("utf-8", "replace").decode("utf-8")
            with self._loading:  # a tokenizer is for one thread at a time
                text, empty = pipe.encode_prompt([caption], self.device, 1, guidance > 1)
            states_BLD = torch.cat([empty, text]) if guidance > 1 else text
            condition = {
                "encoder_hidden_states": states_BLD,
                "class_labels": level.expand(len(states_BLD)),
            }
        latents = noise(pipe.unet.config.in_channels - 3) * scheduler.init_noise_sigma
        takes = inspect.signature(scheduler.step).parameters
        options = {"generator": generator} if "generator" in takes else {}
        for time in scheduler.timesteps:
            seen = torch.cat([scheduler.scale_model_input(latents, time), image_1CHW], dim=1)
            if guidance > 1:
                seen = seen.expand(2, -1, -1, -1)
            predicted = pipe.unet(seen, time, **condition).sample
            if guidance > 1:
                without, following = predicted.chunk(2)
                predicted = without + guidance * (following - without)
            latents = scheduler.step(predicted, time, latents, **options).prev_sample
            yield len(scheduler.timesteps)
        if follows:
            vae = pipe.vae
            large_1CHW = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample
        else:
            large_1CHW = pipe.vqvae.decode(latents).sample
        yield (large_1CHW / 2 + 0.5).float().clamp(0, 1).cpu()

    @cached_property
    def _pipe(self) -> Any:
        if importlib.util.find_spec("diffusers") is None:
            raise ModuleNotFoundError(
                f"Upsampling by diffusion needs `pip install diffusers`; or {EMBEDDED}."
            )
        kind, folder = KINDS[self.settings.kind], _folder(self.settings)
        if fault := _fault(folder, kind):
            raise ValueError(
                f"Expected {self.settings.source!r} to be a whole {kind.pipeline}, found {fault}; "
                f"pickles (.bin, .ckpt) are never read. Name another, or {EMBEDDED}."
            )
        from diffusers.utils import logging as own
        from transformers.utils import logging as others

        with quiet(own, others):
            try:
                pipe = self._load(kind, folder)
            except (ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
                told = str(error).partition("\n")[0].replace(str(folder), folder.name)
                raise ValueError(
                    f"Expected {public_name(self.name)!r} to load as {kind.pipeline}, found "
                    f"{type(error).__name__}: {told}; {EMBEDDED}."
                ) from error
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _load(self, kind: _Kind, folder: Path) -> Any:
        import diffusers

        ldm = self.settings.kind == "ldm"
        pipe = getattr(diffusers, kind.pipeline).from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            dtype=self.dtype if ldm else {"default": self.dtype, "vae": torch.float32},
            **dict.fromkeys(kind.left_out),
        )
        decoder = pipe.vqvae if ldm else pipe.vae
        if (found := 1 << (len(decoder.config.block_out_channels) - 1)) != self.scale:
            raise ValueError(f"a decoder to {found} times the size, not {self.scale}")
        if ldm:  # which its authors drew with
            settings = pipe.scheduler.config
            pipe.scheduler = diffusers.DDIMScheduler.from_config(settings)  # type: ignore[no-untyped-call]
        elif self.settings.noise_level > (most := pipe.config.max_noise_level):
            raise ValueError(f"noise_level={self.settings.noise_level} above its {most}")
        if self.sliced or (self.sliced is None and _is_small(self.device)):
            pipe.enable_attention_slicing()
            if not ldm:
                pipe.vae.enable_tiling()
        return pipe.to(self.device)


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


def _folder(settings: DiffusionSettings) -> Path:
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
    return folder is not None and _fault(folder, KINDS[settings.kind]) is None


def _fault(folder: Path, kind: _Kind) -> str | None:
    """Why a folder cannot be loaded, or None: other classes than known ones, or no safetensors."""
    index = _read(folder / _INDEX)
    if index.get("_class_name") != kind.pipeline:
        return f"a {index.get('_class_name')}" if index else f"no readable {_INDEX}"
    for part, pattern in kind.classes.items():
        found = index.get(part)
        if not isinstance(found, list) or not re.fullmatch(pattern, ".".join(map(str, found))):
            return f"{part} of {found}"
        try:
            other = _other_weights(folder / part)
        except ValueError as error:
            return f"{part}: {error}"
        if other:
            return f"{other} in {part}, which is to be removed"
    for part, file in kind.weights.items():
        shards = folder / part / f"{file}.safetensors.index.json"
        names = {f"{file}.safetensors"}
        if shards.exists():
            listed = _read(shards).get("weight_map")
            names = set(map(str, listed.values())) if isinstance(listed, dict) else {""}
        for name in sorted(names):
            if not re.fullmatch(rf"{file}(-\d{{5}}-of-\d{{5}})?\.safetensors", name):
                return f"weights {name!r:.80} in {part}"
            if not (folder / part / name).is_file():
                return f"no {part}/{name}"
    return None


def _other_weights(folder: Path) -> str | None:
    """What would let transformers read a model's weights from elsewhere in a folder, or None."""
    if adapters := sorted(path.name for path in folder.glob("adapter_*")):
        return adapters[0]
    path = folder / "config.json"
    told = json.dumps(_read(path)) if path.is_file() else ""  # at any depth, escapes undone
    elsewhere = ("transformers_weights", "configuration_files")
    return next((f"{name!r} in config.json" for name in elsewhere if f'"{name}"' in told), None)


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _is_small(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    return torch.cuda.get_device_properties(device).total_memory < SMALL_MEMORY
