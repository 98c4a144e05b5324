"""What one private example costs, counted and not timed: operations, and numbers kept for the way
back.

Networks are made without memory (PyTorch's "meta" device), so that published sizes are counted as
they are, on any machine. The sums are those of products and convolutions, a multiplication and an
addition each, as `torch.utils.flop_counter` counts them, of a forward and a backward pass with the
gradients that are trained. What a private step adds to that (norms, clipped sums, noise) depends on
the engine, and is timed by `bench`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from dpwg.config import DiffusionConfig, ModelConfig
from dpwg.method.layers import Block
from dpwg.method.rivals.latents import DRAWN, LatentDiffusion
from dpwg.method.transformer import LORA_LAYERS, WaveletGPT
from dpwg.privacy.lora import add_lora
from dpwg.training.presets import get_preset


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one private example: `flops` forward and backward, `kept_bytes` of activations in
    bfloat16. `trained` of `parameters` take gradients; `passes` of the network draw one image, and
    `drawing_flops` is what they take.
    """

    name: str
    parameters: int
    trained: int
    flops: int
    kept_bytes: int
    passes: int
    drawing_flops: int


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A network to count: `make` builds it, `run` gives the sum of one record's losses, `train`
    freezes what is not trained; of `passes` an image is drawn, whose operations `drawing` makes of
    those of a forward pass of `run`. `fused` says that its attention is one operation.
    """

    name: str
    make: Callable[[], nn.Module]
    run: Callable[[Any], Tensor]
    train: Callable[[Any], None]
    passes: int
    drawing: Callable[[int], float]
    fused: bool = False


STEPS = 50
"""Steps that a published diffusion model draws in."""


class Raster(nn.Module):
    """LlamaGen-XL's transformer: 775 M parameters, 120 tokens of text before 256 codes of 16,384.

    Sun et al. 2024, arXiv 2406.06525. Its gated networks are counted as plain ones of as many
    weights.
    """

    TEXT, CODES, SIZE, WIDTH, BLOCKS, HEADS = 120, 256, 16_384, 1280, 36, 20

    def __init__(self) -> None:
        super().__init__()
        self.caption = nn.Linear(2048, self.WIDTH)
        self.codes = nn.Embedding(self.SIZE, self.WIDTH)
        self.blocks = nn.ModuleList(Block(self.WIDTH, self.HEADS) for _ in range(self.BLOCKS))
        self.norm = nn.LayerNorm(self.WIDTH)
        self.logits = nn.Linear(self.WIDTH, self.SIZE, bias=False)

    def forward(self) -> Tensor:
        text = self.caption(self.caption.weight.new_empty(1, self.TEXT, 2048))
        x = torch.cat((text, self.codes(torch.zeros(1, self.CODES, dtype=torch.long))), dim=1)
        for block in self.blocks:
            x = block(x, x.new_zeros(()))
        out: Tensor = self.logits(self.norm(x[:, self.TEXT - 1 : -1])).sum()  # of the codes alone
        return out


class Stable(nn.Module):
    """Stable Diffusion's UNet over the latents of 256 pixels (Rombach et al. 2022), 77 tokens."""

    def __init__(self, text_width: int) -> None:
        from diffusers import UNet2DConditionModel

        super().__init__()
        make: Any = UNet2DConditionModel
        self.network: Any = make(
            sample_size=32, cross_attention_dim=text_width, attention_head_dim=8
        )
        self.text_width = text_width

    def forward(self) -> Tensor:
        weight = self.network.conv_in.weight
        text, latent = weight.new_empty(1, 77, self.text_width), weight.new_empty(1, 4, 32, 32)
        out: Tensor = self.network(latent, torch.zeros(1, dtype=torch.long), text).sample.sum()
        return out


def _attention(model: nn.Module) -> None:
    """What DP-LDM trains of a UNet: its transformer blocks."""
    model.requires_grad_(False)
    for name, module in model.named_modules():
        if name.endswith("transformer_blocks"):
            module.requires_grad_(True)


def networks() -> Iterator[Counted]:
    """The small three, as this project trains them, then those of published sizes."""
    for preset, name in (
        ("photos-128", "DP-Wavelet, small"),
        ("llamagen-128", "DP-LlamaGen, small"),
        ("ldm-128", "DP-LDM, small"),
    ):
        sizes = get_preset(preset)
        small = sizes.finetuning.lora_rank
        if isinstance(sizes.model, ModelConfig):
            yield _codes(name, sizes.model, small)
        else:
            yield _latents(name, sizes.model)
    yield _codes("DP-Wavelet, 350 M, 256 codes a scale", get_preset("photo-256").model, 16)
    yield Counted(
        name="DP-LlamaGen, 775 M",
        make=Raster,
        run=lambda model: model(),
        train=lambda model: add_lora(model, 16, LORA_LAYERS[:1] + LORA_LAYERS[2:5]),
        passes=Raster.CODES,
        drawing=lambda forward: 2 * forward,  # with the caption and without
    )
    for name, text_width in (
        ("DP-LDM, text to image at 256 pixels", 1280),
        ("Stable Diffusion 1.5 at 256 pixels", 768),
    ):
        yield Counted(
            name=name,
            make=functools.partial(Stable, text_width),
            run=lambda model: model(),
            train=_attention,
            passes=2 * STEPS,
            drawing=lambda forward: 2 * STEPS * forward,
            fused=True,
        )


def _codes(name: str, config: ModelConfig, rank: int) -> Counted:
    def run(model: WaveletGPT) -> Tensor:
        states = torch.empty(1, config.text_tokens, config.text_width, dtype=torch.bfloat16)
        mask = torch.ones(1, config.text_tokens, dtype=torch.bool)
        shape = (1, config.positions, config.codes)
        codes = [torch.zeros(shape, dtype=torch.long) for _ in range(config.scales)]
        return torch.stack([logits.sum() for logits in model(states, mask, codes)]).sum()

    return Counted(
        name=name,
        make=lambda: WaveletGPT(config),
        run=run,
        train=lambda model: model.make_trainable(rank),
        passes=config.length,
        drawing=lambda forward: 2 * forward,
    )


def _latents(name: str, config: DiffusionConfig) -> Counted:
    def run(model: LatentDiffusion) -> Tensor:
        latent = torch.empty(1, config.channels, config.size, config.size)
        states = torch.empty(1, config.text_tokens, config.text_width)
        mask = torch.ones(1, config.text_tokens, dtype=torch.bool)
        return model(latent, torch.zeros(1, dtype=torch.long), states, mask).sum()

    return Counted(
        name=name,
        make=lambda: LatentDiffusion(config),
        run=run,
        train=lambda model: model.make_trainable(0),
        passes=2 * DRAWN,
        drawing=lambda forward: 2 * DRAWN * forward,
        fused=True,
    )


def count(network: Counted) -> Cost:
    """Count a network's cost; no number of it is computed."""
    with torch.device("meta"):
        model = network.make().bfloat16()
        parameters = sum(p.numel() for p in model.parameters())
        network.train(model)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        with FlopCounterMode(display=False) as forward, torch.no_grad():
            network.run(model)
        with FlopCounterMode(display=False) as both:
            network.run(model).backward()
    return Cost(
        name=network.name,
        parameters=parameters,
        trained=trained,
        flops=both.get_total_flops(),
        kept_bytes=_kept_bytes(network),
        passes=network.passes,
        drawing_flops=math.ceil(network.drawing(forward.get_total_flops())),
    )


def _kept_bytes(network: Counted) -> int:
    """What is kept for the way back. Attention of diffusers is one operation that keeps no map, on
    any device but "meta", so that its networks are made of stand-ins for tensors of the CPU;
    `Block` multiplies its attention out anywhere.
    """
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: Tensor) -> Tensor:
        alive.append(tensor)  # so that no storage takes another's place
        if (place := _storage(tensor)) not in weights:
            kept[place] = tensor.untyped_storage().nbytes()
        return tensor

    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) if network.fused else torch.device("meta"):
            model = network.make()
            network.train(model)
            weights = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
            with saved_tensors_hooks(keep, lambda x: x):
                network.run(model)
    finally:
        torch.set_default_dtype(usual)
    return sum(kept.values())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def costs() -> list[dict[str, Any]]:
    """Every network's cost, and how many times the first of its size each takes."""
    rows = [count(network) for network in networks()]
    answer = []
    for row in rows:
        base = rows[0] if "small" in row.name else rows[3]
        times = {
            "flops_times": row.flops / base.flops,
            "kept_times": row.kept_bytes / base.kept_bytes,
            "drawing_times": row.drawing_flops / base.drawing_flops,
        }
        answer.append(asdict(row) | times)
    return answer
