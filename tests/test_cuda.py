"""On a GPU: clipped sums, noise, resumption, seeds, and a whole tiny family. Skipped without one.

`python -m pytest -m cuda tests/test_cuda.py --cuda-results docs/results/cuda.json` runs these alone
and keeps what they found.
"""

from __future__ import annotations

import copy
import dataclasses
import platform
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Inputs
from gradients import assert_same_sums, clip, gpt_losses, minus, norm_of, one_by_one
from test_recipe import FAMILIES, recipe, source, tiny_preset

from dpwg.method.captions import EncodedText
from dpwg.method.sampling import Sampling, sample
from dpwg.privacy.accounting import PrivacyPlan
from dpwg.privacy.mechanism import add_gaussian_noise
from dpwg.release.folder import load_card, load_release
from dpwg.training.examples import Examples
from dpwg.training.family import train_family
from dpwg.training.private import Finetuning, PrivateTraining
from dpwg.training.processes import Ranks

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
GPU = torch.device("cuda")
PLAN = PrivacyPlan(
    records=12, batch_size=6, steps=4, delta=1e-3, noise_multiplier=1.0, max_grad_norm=0.5
)
SETTINGS = Finetuning(micro_batch=4, lora_rank=2, save_every=1, warmup=0, precision="float32")


@pytest.fixture(scope="module", autouse=True)
def results(request: pytest.FixtureRequest):
    """Which tests passed, on which machine and when, in the file that is asked for."""
    failed, started = request.session.testsfailed, time.time()
    yield
    path = request.config.getoption("--cuda-results")
    if path is not None and request.session.testsfailed == failed:
        path.write_text(
            recipe.json.dumps(
                {
                    "device": torch.cuda.get_device_name(),
                    "torch": torch.__version__,
                    "python": platform.python_version(),
                    "date": datetime.now(UTC).date().isoformat(),
                    "tests": [
                        item.name for item in request.session.items if item.fspath == __file__
                    ],
                    "seconds": round(time.time() - started, 1),
                },
                indent=2,
            )
            + "\n"
        )


def on_gpu(inputs: Inputs) -> Inputs:
    return Inputs(
        states_BLD=inputs.states_BLD.to(GPU),
        mask_BL=inputs.mask_BL.to(GPU),
        codes=[scale.to(GPU) for scale in inputs.codes],
    )


def test_clipped_sums_equal_a_loop_over_records_in_float32(model, make_inputs) -> None:
    model = copy.deepcopy(model).to(GPU)
    losses_of = gpt_losses(on_gpu(make_inputs(6)))
    norms_B, _ = one_by_one(losses_of, model, 6, 1.0)
    for bound in (0.5 * norms_B.min().item(), norms_B.median().item()):
        _, expected = one_by_one(losses_of, model, 6, bound)
        batch, sums = clip(model, losses_of, 6, bound)
        torch.testing.assert_close(batch.norms_B.double(), norms_B, rtol=1e-4, atol=0)
        assert_same_sums(sums, expected, tolerance=1e-4)


def test_clipped_sums_stay_within_the_bound_in_bfloat16(model, make_inputs) -> None:
    model = copy.deepcopy(model).to(GPU, torch.bfloat16)
    inputs = on_gpu(make_inputs(6))
    losses_of = gpt_losses(inputs)
    norms_B, expected = one_by_one(losses_of, model, 6, 1e9)
    bound = 0.5 * norms_B.min().item()
    batch, sums = clip(model, losses_of, 6, 1e9)
    assert norm_of(minus(sums, expected)) < 0.05 * norm_of(expected)
    assert (batch.norms_B.double() > 0.97 * norms_B).all()
    for record in range(6):
        alone = torch.arange(6, device=GPU) == record
        _, own = clip(model, losses_of, 6, bound, alone)
        assert norm_of(own) <= bound * (1 + 1e-3)
        assert norm_of(own) >= 0.8 * bound


def test_noise_has_its_standard_deviation_on_the_gpu() -> None:
    sums = {name: torch.zeros(400, 500, device=GPU) for name in ("a", "b")}
    add_gaussian_noise(sums, standard_deviation=0.3, generator=np.random.default_rng(0))
    for total in sums.values():
        assert total.device.type == "cuda"
        assert total.std().item() == pytest.approx(0.3, rel=0.01)
        assert abs(total.mean().item()) < 0.005
    assert abs(torch.corrcoef(torch.stack([t.flatten() for t in sums.values()]))[0, 1]) < 0.02


def test_a_run_goes_on_where_it_stopped(make_model, make_examples, tmp_path: Path) -> None:
    def training(examples: Examples) -> PrivateTraining:
        model = make_model()
        return PrivateTraining(model, examples, PLAN, SETTINGS, tmp_path, ranks=Ranks(device=GPU))

    first = training(make_examples()).run()
    next(first), next(first)
    again = training(make_examples())
    assert [report.step for report in again.run()] == [3, 4]
    assert [entry.steps for entry in again.ledger.entries] == [4]


def test_without_noise_the_gpu_takes_the_steps_of_the_cpu(make_model, make_examples) -> None:
    plan = dataclasses.replace(PLAN, noise_multiplier=0.0)
    weights = []
    for device in ("cpu", "cuda"):
        model = make_model()
        torch.manual_seed(0)
        run = PrivateTraining(
            model, make_examples(), plan, SETTINGS, ranks=Ranks(device=device),
            generator=np.random.default_rng(0),
        )  # fmt: skip
        list(run.run())
        weights.append({name: p.detach().cpu() for name, p in model.named_parameters()})
    start = dict(make_model().named_parameters())
    moved = norm_of({name: weights[0][name] - start[name] for name in start})
    assert moved > 0
    assert norm_of(minus(*weights)) < 0.02 * moved


def test_a_seed_gives_the_codes_of_the_cpu(make_model, make_inputs) -> None:
    inputs = make_inputs(4)
    text = EncodedText(states_BLD=inputs.states_BLD.double(), mask_BL=inputs.mask_BL)
    empty = EncodedText(states_BLD=text.states_BLD[:1] * 0, mask_BL=text.mask_BL[:1])
    drawn = []
    for device in ("cpu", "cuda"):
        model = copy.deepcopy(make_model()).double().to(device)
        *_, codes = sample(model, text, empty, (3, 4, 5, 6), Sampling(guidance=2.0))
        drawn.append([scale.cpu() for scale in codes])
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


def test_a_whole_tiny_family_is_trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = tiny_preset()
    monkeypatch.setattr(recipe, "get_preset", lambda name: small)
    reports = train_family(
        FAMILIES["celeba"],
        source(tmp_path),
        tmp_path / "out",
        tmp_path / "run",
        minutes=0.1,
        clock=lambda: 0.0,
        ranks=Ranks(device=GPU),
    )
    done = {report.stage: report.done for report in reports if report.done}
    assert list(done) == list(FAMILIES["celeba"].stages)
    for run in FAMILIES["celeba"].runs:
        epsilon = load_card(tmp_path / "out" / run.name).epsilon
        assert epsilon is None or 0.99 * run.epsilon < epsilon <= run.epsilon
        assert load_release(tmp_path / "out" / run.name).adapter is not None
