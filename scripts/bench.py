"""What privacy costs here: training with and without it, Opacus beside it, sampling, start-up.

The ways to compute a training step take turns in one process, so that a machine that slows down
slows them all; medians are compared, of each way at its best micro-batch. Peak memory is from a
process for each way. Run it as `python -m dpwg bench`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dpwg.config import ModelConfig
from dpwg.device import pick_precision
from dpwg.method.pipeline import DPWaveletPipeline
from dpwg.method.transformer import LORA_LAYERS, WaveletGPT
from dpwg.privacy.clipping import ClippedSums
from dpwg.privacy.lora import add_lora
from dpwg.privacy.mechanism import add_gaussian_noise, system_generator
from dpwg.release.folder import find_checkpoint, load_release
from dpwg.training.processes import keep_freed_memory
from dpwg.upsampling.upsamplers import DEFAULT_UPSAMPLER, get_upsampler

K = TypeVar("K", bound=Hashable)
MAX_GRAD_NORM = NOISE = 1.0
LORA_RANK = 16
NOTES = (
    "Time is that of one micro-batch: forward and backward pass; where it is private, clipping to "
    "norm 1 and its share of the Gaussian noise that a logical batch of 4,096 gets once. All "
    "parameters are trained, or LoRA pairs where the name says so. No optimizer step, which is the "
    "same for all.",
    "matrix_peak is what products of the settings' precision, in the model's own shapes, reach "
    "alone; share_of_peak counts the products of the non-private step, whatever else a way "
    "computes.",
    "Opacus sees the code heads through a reshape to (B, T, features) and contiguous position ids: "
    "its ghost norms take neither 4-D inputs of Linear nor expanded ids (1.6.0).",
    "In bfloat16 Opacus computes norms and sums in bfloat16 too; dpwg does so in float32.",
)
CAPTIONS = ("A person with short brown hair, wearing a red hoodie, on a blue background",) * 4

LOGICAL_BATCH = 4096
"""Records of a logical batch, as the released checkpoints took them."""

Step = Callable[[], None]
Way = tuple[Step, Step]
"""What is done a micro-batch, and what once a logical batch."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """The figures of one machine. Ratios are of seconds per example; memory is peak resident."""

    private_over_nonprivate: float
    private_lora_over_nonprivate_lora: float
    opacus_ghost_over_private: float
    opacus_hooks_over_private: float
    private_memory_over_nonprivate: float
    examples_per_second: dict[str, float]
    micro_batch: dict[str, int]
    matrix_peak_gigaflops: float
    share_of_peak: dict[str, float]
    seconds_per_image: dict[str, float]
    seconds_to_ready: float
    peak_bytes: dict[str, int]
    settings: dict[str, Any]
    machine: dict[str, Any]
    notes: tuple[str, ...]


class _Losses(nn.Module):
    """WaveletGPT with a loss a record as its output, which is what Opacus wraps."""

    def __init__(self, model: WaveletGPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, states_BLD: Tensor, mask_BL: Tensor, *codes: Tensor) -> Tensor:
        return self.model.negative_log_likelihood(states_BLD, mask_BL, codes)


class _Flat(nn.Module):
    """A layer that sees (B, ..., features) as (B, T, features)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x.flatten(1, -2)).unflatten(1, x.shape[1:-1])
        return out


def measure(
    checkpoint: str | Path,
    *,
    micro_batches: Sequence[int] = (32, 64),
    repetitions: int = 5,
    precision: str = "auto",
    upsampler: str = DEFAULT_UPSAMPLER,
) -> dict[str, Any]:
    """Measure this machine with the model of a checkpoint: the fields of `Benchmark`."""
    if not micro_batches or min(micro_batches) < 1 or repetitions < 1:
        raise ValueError(
            f"Expected micro_batches={micro_batches} and repetitions={repetitions} >= 1; 32, 64 "
            "and 5 are usual."
        )
    keep_freed_memory()  # as the training verbs do
    precision = pick_precision(torch.device("cpu"), precision)
    folder = find_checkpoint(checkpoint).resolve()
    model = load_release(folder).model
    config = model.config
    seconds = _take_turns(
        {
            (name, size): (*way(config, size, precision), size)
            for name, way in WAYS.items()
            for size in micro_batches
        },
        repetitions,
    )
    best = {name: min((seconds[name, size], size) for size in micro_batches) for name in WAYS}
    example = {name: value for name, (value, _) in best.items()}
    memory = {
        name: _in_a_process(_peak_of_step, name, config, size, precision)
        for name, (_, size) in best.items()
    }
    pipeline = DPWaveletPipeline.from_pretrained(folder)
    flops, peak = _flops(config, precision), _matrix_peak(config, max(micro_batches), precision)
    result = Benchmark(
        private_over_nonprivate=example["private"] / example["nonprivate"],
        private_lora_over_nonprivate_lora=example["private_lora"] / example["nonprivate_lora"],
        opacus_ghost_over_private=example["opacus_ghost"] / example["private"],
        opacus_hooks_over_private=example["opacus_hooks"] / example["private"],
        private_memory_over_nonprivate=memory["private"] / memory["nonprivate"],
        examples_per_second={name: 1 / value for name, value in example.items()},
        micro_batch={name: size for name, (_, size) in best.items()},
        matrix_peak_gigaflops=peak / 1e9,
        share_of_peak={name: flops / example[name] / peak for name in ("nonprivate", "private")},
        seconds_per_image=_seconds_per_image(pipeline, repetitions, upsampler),
        seconds_to_ready=_seconds_to_ready(folder),
        peak_bytes=memory | {"sampling": _in_a_process(_peak_of_sampling, folder, upsampler)},
        settings={
            "checkpoint": str(checkpoint),
            "parameters": sum(p.numel() for p in model.parameters()),
            "micro_batches": list(micro_batches),
            "lora_rank": LORA_RANK,
            "repetitions": repetitions,
            "precision": precision,
            "upsampler": upsampler,
            **pipeline.choice(),
        },
        machine=machine(),
        notes=NOTES,
    )
    return asdict(result)


def _losses(config: ModelConfig, precision: str, lora_rank: int = 0) -> _Losses:
    torch.manual_seed(0)
    model = WaveletGPT(config)
    if lora_rank:
        add_lora(model, lora_rank, LORA_LAYERS)
    return _Losses(model.to(getattr(torch, precision)))


def _inputs(config: ModelConfig, micro_batch: int) -> tuple[Tensor, ...]:
    """Random captions of full length and random codes."""
    generator = torch.Generator().manual_seed(0)
    captions, places = (micro_batch, config.text_tokens), (config.positions, config.codes)
    return (
        torch.randn(*captions, config.text_width, generator=generator),
        torch.ones(captions, dtype=torch.bool),
        *(
            torch.randint(size, (micro_batch, *places), generator=generator)
            for size in config.codebook_sizes
        ),
    )


def _nonprivate(config: ModelConfig, micro_batch: int, precision: str, lora_rank: int = 0) -> Way:
    losses, inputs = _losses(config, precision, lora_rank), _inputs(config, micro_batch)

    def step() -> None:
        losses.zero_grad(set_to_none=True)
        losses(*inputs).sum().backward()

    return step, lambda: None


def _private(config: ModelConfig, micro_batch: int, precision: str, lora_rank: int = 0) -> Way:
    losses, inputs = _losses(config, precision, lora_rank), _inputs(config, micro_batch)
    clipped = ClippedSums(losses, max_grad_norm=MAX_GRAD_NORM)
    generator = system_generator()

    def step() -> None:
        clipped.zero()
        clipped.add(lambda: losses(*inputs))

    def finish() -> None:
        add_gaussian_noise(clipped.sums, standard_deviation=NOISE, generator=generator)

    return step, finish


def _opacus_hooks(config: ModelConfig, micro_batch: int, precision: str) -> Way:
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    losses, inputs = _losses_for_opacus(config, precision), _inputs(config, micro_batch)
    sampled = GradSampleModule(losses, loss_reduction="sum")
    optimizer = DPOptimizer(torch.optim.SGD(losses.parameters(), lr=0.0), **_terms(micro_batch))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        sampled(*inputs).sum().backward()
        optimizer.clip_and_accumulate()

    return step, optimizer.add_noise


def _opacus_ghost(config: ModelConfig, micro_batch: int, precision: str) -> Way:
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

    losses, inputs = _losses_for_opacus(config, precision), _inputs(config, micro_batch)
    sampled = GradSampleModuleFastGradientClipping(
        losses, loss_reduction="sum", max_grad_norm=MAX_GRAD_NORM, use_ghost_clipping=True
    )
    plain = torch.optim.SGD(losses.parameters(), lr=0.0)
    optimizer = DPOptimizerFastGradientClipping(plain, **_terms(micro_batch))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        DPTensorFastGradientClipping(sampled, optimizer, sampled(*inputs), "sum").backward()
        optimizer.accumulate()

    return step, optimizer.add_noise


WAYS: dict[str, Callable[[ModelConfig, int, str], Way]] = {
    "nonprivate": _nonprivate,
    "private": _private,
    "opacus_hooks": _opacus_hooks,
    "opacus_ghost": _opacus_ghost,
    "nonprivate_lora": partial(_nonprivate, lora_rank=LORA_RANK),
    "private_lora": partial(_private, lora_rank=LORA_RANK),
}


def _terms(micro_batch: int) -> dict[str, Any]:
    return {
        "noise_multiplier": NOISE,
        "max_grad_norm": MAX_GRAD_NORM,
        "expected_batch_size": micro_batch,
        "loss_reduction": "sum",
    }


def _losses_for_opacus(config: ModelConfig, precision: str) -> _Losses:
    """The same model in the shapes that Opacus' ghost norms know."""
    losses = _losses(config, precision)
    for head in losses.model.heads:
        for name, layer in list(head.named_children()):
            setattr(head, name, _Flat(layer))
    losses.model.places.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    return losses


def _take_turns(ways: dict[K, tuple[Step, Step, int]], repetitions: int) -> dict[K, float]:
    """Seconds an example, in turns: medians of the step and of its share of the finish.

    A way is its step, its finish, and the step's examples; a logical batch has one finish. A first
    round warms up.
    """
    steps: dict[K, list[float]] = {name: [] for name in ways}
    finishes: dict[K, list[float]] = {name: [] for name in ways}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook")
        for _ in range(repetitions + 1):
            for name, (step, finish, _) in ways.items():
                clock = [time.perf_counter()]
                for part in (step, finish):
                    part()
                    clock.append(time.perf_counter())
                steps[name].append(clock[1] - clock[0])
                finishes[name].append(clock[2] - clock[1])
    return {
        name: statistics.median(steps[name][1:]) / size
        + statistics.median(finishes[name][1:]) / LOGICAL_BATCH
        for name, (_, _, size) in ways.items()
    }


def _flops(config: ModelConfig, precision: str) -> float:
    """Floating-point operations of the matrix products of a non-private step, an example."""
    step, _ = _nonprivate(config, 1, precision)
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def _matrix_peak(config: ModelConfig, micro_batch: int, precision: str) -> float:
    """Operations a second of products alone, in the shapes of the blocks' layers."""
    rows, dtype = micro_batch * config.length, getattr(torch, precision)
    flops = seconds = 0.0
    for layer in (m for m in WaveletGPT(config).blocks.modules() if isinstance(m, nn.Linear)):
        x, weight = torch.randn(rows, layer.in_features).to(dtype), layer.weight.detach().to(dtype)
        times = []
        for _ in range(5):
            started = time.perf_counter()
            x @ weight.T
            times.append(time.perf_counter() - started)
        flops, seconds = flops + 2.0 * rows * weight.numel(), seconds + min(times)
    return flops / seconds


def _seconds_per_image(
    pipeline: DPWaveletPipeline, repetitions: int, upsampler: str
) -> dict[str, float]:
    """Medians over batches of four by stage, all models loaded."""
    loaded = get_upsampler(upsampler)
    runs = [pipeline(CAPTIONS, upsampler=loaded).seconds for _ in range(repetitions + 1)][1:]
    return {
        stage: statistics.median(run[stage] for run in runs) / len(CAPTIONS) for stage in runs[0]
    }


def _seconds_to_ready(folder: Path) -> float:
    """A fresh process, from its start to a loaded pipeline and its end."""
    code = (
        "import sys; from dpwg.method.pipeline import *; "
        "DPWaveletPipeline.from_pretrained(sys.argv[1])"
    )
    started = time.perf_counter()
    command = [sys.executable, "-c", code, str(folder)]
    subprocess.run(command, cwd=Path(__file__).resolve().parents[1], check=True)
    return time.perf_counter() - started


def _in_a_process(work: Callable[..., int], *arguments: Any) -> int:
    """Run in a process of its own, forked from a clean one that has only imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "opacus.grad_sample", "opacus.optimizers"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *arguments).result()


def _peak_of_step(name: str, config: ModelConfig, micro_batch: int, precision: str) -> int:
    keep_freed_memory()
    way = WAYS[name](config, micro_batch, precision)
    _take_turns({name: (*way, micro_batch)}, repetitions=1)
    return _peak_bytes()


def _peak_of_sampling(folder: Path, upsampler: str) -> int:
    DPWaveletPipeline.from_pretrained(folder)(CAPTIONS, upsampler=upsampler)
    return _peak_bytes()


def _peak_bytes() -> int:
    """Peak resident memory of this process; on Linux `ru_maxrss` could be the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def machine() -> dict[str, Any]:
    """What a measurement was made on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "opacus": version("opacus"),
    }


if __name__ == "__main__":
    checkpoint, precision, *sizes = sys.argv[1:]
    found = measure(checkpoint, precision=precision, micro_batches=[*map(int, sizes)])
    print(json.dumps(found, indent=2))
