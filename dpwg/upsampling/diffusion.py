"""Upsamplers by diffusion, from `diffusers`: drawn after a caption and from a seed.

They see what the private stage has released, and the visitor's caption, so that by post-processing
they cost no privacy. `diffusers` is imported by the first image, not before.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from dpwg.device import pick_device
from dpwg.method.captions import quiet
from dpwg.upsampling.diffusion_models import (
    EMBEDDED,
    KINDS,
    DiffusionSettings,
    Kind,
    fault_of,
    model_folder,
    public_name,
)
from dpwg.upsampling.images import check_images

SMALL_MEMORY = 8 * 2**30


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
        self.device = torch.device(device or pick_device(mps=True))
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
        kind, folder = KINDS[self.settings.kind], model_folder(self.settings)
        if fault := fault_of(folder, kind):
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

    def _load(self, kind: Kind, folder: Path) -> Any:
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
        if self.sliced or (self.sliced is None and self._is_small()):
            pipe.enable_attention_slicing()
            if not ldm:
                pipe.vae.enable_tiling()
        return pipe.to(self.device)

    def _is_small(self) -> bool:
        if self.device.type != "cuda":
            return False
        return torch.cuda.get_device_properties(self.device).total_memory < SMALL_MEMORY
