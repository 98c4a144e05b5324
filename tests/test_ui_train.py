"""The Train tab: plans, runs that stop and go on, and what a visitor takes home."""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from dpwg.cli import main
from dpwg.method.pipeline import DPWaveletPipeline
from dpwg.privacy.accounting import PrivacyPlan, epsilon_text
from dpwg.release.folder import checkpoint_names, load_card, load_release
from dpwg.training.private import PrivateTraining
from dpwg.ui import runs, train
from dpwg.ui.compare import compare_captions, compare_checkpoints
from dpwg.ui.demo import build_demo
from dpwg.ui.generate import generate, opened
from dpwg.ui.limits import (
    KEPT_SECONDS,
    MAX_RUNS,
    MAX_TRAIN_MINUTES,
    MAX_TRAIN_RECORDS,
    described,
)
from dpwg.ui.nearest import nearest
from dpwg.ui.own import YOURS, choices, offered
from dpwg.ui.plans import (
    MAX_GRAD_NORM,
    default_batch,
    expectation,
    noise_to_signal,
)
from dpwg.ui.promises import describe_checkpoint
from dpwg.ui.runs import Measured, Order, Run
from dpwg.ui.train import FACES, UPLOAD, draw, plan, stop

MEASURED = Measured(micro_batch=64, seconds_per_micro_batch=0.5, trainable_parameters=10_000)
ASKED = {
    "previous": None,
    "base": "faces/public",
    "source": UPLOAD,
    "count": 100,
    "files": None,
    "epsilon": 3.0,
    "steps": 3,
    "batch": None,
    "delta": None,
}


@pytest.fixture(autouse=True)
def _checkpoints(root, tmp_path, monkeypatch):
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(root))
    monkeypatch.setenv("DPWG_CACHE", str(tmp_path / "shared"))
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(runs, "server_folder", lambda: tmp_path)


@pytest.fixture
def files(image_folder) -> list[str]:
    return [str(path) for path in sorted(image_folder.iterdir())]


@pytest.fixture
def here(monkeypatch):
    """Runs train in this process, without the wait for another one to start."""

    def lines(self, arguments):
        said = io.StringIO()
        with monkeypatch.context() as context, contextlib.redirect_stdout(said):
            context.setenv("DPWG_CACHE", str(self.folder / "cache"))
            main(arguments)
        yield from said.getvalue().splitlines()

    monkeypatch.setattr(Run, "_lines", lines)


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(Run, "measure", lambda self, order: MEASURED)


def planned(**changes) -> train.Planned:
    *_, last = plan(**ASKED | changes)
    return last


def test_what_is_left_open_has_a_default(files, measured):
    closed = planned(files=files, batch=3, delta=1e-3).run.order
    assert planned(files=files, batch=0, delta=0).run.order == closed
    assert planned(files=files).run.order == closed


def kept(tmp_path) -> list[Path]:
    return sorted((tmp_path / "runs").iterdir())


def test_the_plan_is_that_of_the_accounting(files, measured):
    last = planned(files=files)
    expected = PrivacyPlan.calibrated(
        records=12,
        batch_size=3,
        steps=3,
        delta=1e-3,
        max_grad_norm=MAX_GRAD_NORM,
        target_epsilon=3.0,
    )
    assert last.run.order == Order("faces/public", expected, 3.0)
    figures = dict(last.table)
    spent = expected.epsilons().pld
    assert figures["noise multiplier"] == f"{expected.noise_multiplier:.4g}"
    assert figures["epsilon (PLD)"] == epsilon_text(spent)
    assert (figures["records"], figures["sampling rate"]) == ("12", "0.25")
    assert float(figures["delta"]) == 1e-3 < 1 / 12
    assert last.told.startswith(
        f"**ε = {epsilon_text(spent)} at δ = 0.001.** Whatever else they know"
    )
    assert last.run.folder.stat().st_mode & 0o777 == 0o700
    ratio = noise_to_signal(expected.noise_multiplier, 3, 10_000)
    assert ratio == pytest.approx(expected.noise_multiplier * 100 / 3)
    assert f"**{ratio:.2g} times**" in last.told
    assert "Expect little" in last.told
    card = load_card(Path(os.environ["DPWG_CHECKPOINTS"]) / "faces" / "eps-1")
    peer = noise_to_signal(card.noise_multiplier, 100, 10_000)
    assert f"{peer:.2g} for `faces/eps-1` (5,000 records)" in last.told


def test_quality_is_not_promised_where_noise_is_short():
    quiet = PrivacyPlan(
        records=4000, batch_size=1000, steps=3, delta=1e-5, noise_multiplier=1.0, max_grad_norm=0.1
    )
    assert "What to expect" in expectation(quiet, MEASURED, "faces/public")
    assert "Expect little" in expectation(
        replace(quiet, noise_multiplier=20.0), MEASURED, "faces/public"
    )


@pytest.mark.parametrize("records", [10, 11, 99, 100, 1000, MAX_TRAIN_RECORDS])
def test_the_default_batch_is_a_part_of_the_records(records):
    assert 1 <= default_batch(records) <= records


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "faces/eps-1"}, "Expected base='faces/eps-1'"),
        ({"base": "../faces/public"}, r"Expected base='\.\./faces/public'"),
        ({"source": "/etc"}, "Expected source='/etc'"),
        ({"source": FACES, "count": 10**9}, "records=1000000000"),
        ({"source": FACES, "count": float("nan")}, "records=nan"),
        ({"epsilon": float("inf")}, "epsilon=inf"),
        ({"epsilon": float("nan")}, "epsilon=nan"),
        ({"epsilon": None}, "epsilon=None"),
        ({"epsilon": 0}, "epsilon=0"),
        ({"steps": 101}, "steps=101"),
        ({"steps": 1.5}, "steps=1.5"),
        ({"batch": float("nan")}, "batch=nan"),
        ({"batch": -1}, "batch=-1"),
        ({"delta": float("nan")}, "delta=nan"),
        ({"delta": -1.0}, "delta=-1.0"),
        ({"source": FACES, "delta": 0.01}, "delta=0.01 < 1/records"),
        ({"source": FACES, "batch": 101}, "pass records >= batch"),
        ({}, "Choose a zip"),
    ],
)
def test_bad_wishes_are_refused_before_anything_is_done(tmp_path, changes, message):
    with pytest.raises(gr.Error, match=message):
        planned(**changes)
    assert kept(tmp_path) == []


def test_a_bad_upload_leaves_nothing(tmp_path, files, measured):
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(gr.Error, match="one whole zip") as error:
        planned(files=[str(tmp_path / "a.zip")])
    assert str(tmp_path) not in str(error.value)
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,x\n")
    with pytest.raises(gr.Error, match="Expected records=1"):
        planned(files=[str(tmp_path / "a.png"), str(tmp_path / "metadata.csv")])
    assert kept(tmp_path) == []


def test_a_plan_that_takes_too_long_is_refused(tmp_path, files, monkeypatch):
    slow = replace(MEASURED, seconds_per_micro_batch=60 * MAX_TRAIN_MINUTES / 2)
    monkeypatch.setattr(Run, "measure", lambda self, order: slow)
    with pytest.raises(gr.Error, match=f"at most {MAX_TRAIN_MINUTES} minutes"):
        planned(files=files)
    assert kept(tmp_path) == []


def test_a_new_plan_removes_the_old_run(tmp_path, files, measured):
    first = planned(files=files).run
    second = planned(files=files, previous=first).run
    assert kept(tmp_path) == [second.folder]
    with pytest.raises(gr.Error, match="Choose a zip"):
        planned(previous=second)
    assert kept(tmp_path) == []


def test_a_plan_that_nobody_waits_for_leaves_nothing(tmp_path, files, measured):
    frames = plan(**ASKED | {"files": files})
    assert next(frame for frame in frames if frame.run).run.folder.exists()
    frames.close()
    assert kept(tmp_path) == []


def test_runs_are_counted_and_old_ones_removed(tmp_path, monkeypatch):
    folders = [Run().folder for _ in range(MAX_RUNS)]
    assert len(set(folders)) == MAX_RUNS
    with pytest.raises(ValueError, match=f"fewer than {MAX_RUNS} runs"):
        Run()
    past = time.time() - KEPT_SECONDS - 60 * MAX_TRAIN_MINUTES - 5  # its server still lives
    os.utime(folders[0], (past, past))
    assert Run().folder not in folders
    assert not folders[0].exists()
    monkeypatch.setattr(runs.shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    folders[1].rmdir()
    with pytest.raises(ValueError, match="MB of free disk"):
        Run()


def test_a_stopped_run_goes_on_and_its_ledger_has_all_steps(
    tmp_path, files, here, measured, monkeypatch
):
    run = planned(files=files, steps=4).run
    for early in (lambda: next(draw(run, "x", 0)), lambda: stop(run)):
        with pytest.raises(gr.Error, match=r"no result yet|Nothing of yours"):
            early()
    whole = PrivateTraining.run

    def cut(self):
        for report in whole(self):
            yield report
            if report.step == 2:
                raise ValueError("killed")

    with monkeypatch.context() as context:
        context.setattr(PrivateTraining, "run", cut)
        frames = list(train.train(run))
    assert frames[-1].status.startswith("**2 of 4 steps**, ε = ")
    assert "stopped" in frames[-1].status
    assert frames[-1].files is None
    assert not run.release.exists()
    assert "private loss" in frames[-1].status
    assert frames[-1].loss.axes[0].get_ylabel().startswith("PRIVATE")
    frames = list(train.train(run))
    assert [report["step"] for report in run.reports] == [1, 2, 3, 4]
    card = load_card(run.release)
    assert (card.steps, card.records, card.dataset) == (4, 12, "your-upload")
    assert len(card.ledger.entries) == 1
    assert card.noise_multiplier == run.order.plan.noise_multiplier
    assert card.epsilon == pytest.approx(card.ledger.pld_epsilon(1e-3))
    assert card.epsilon <= card.target_epsilon == 3.0
    assert frames[-1].card == card.to_markdown()
    assert {path.name for path in run.folder.iterdir()} == {"release", "dpwg-eps-3.zip"}
    assert not (tmp_path / "shared").exists()
    with pytest.raises(gr.Error, match="is done"):
        next(train.train(run))

    home = tmp_path / "home"
    with zipfile.ZipFile(frames[-1].files[0]) as archive:
        names = set(archive.namelist())
        archive.extractall(home)
    assert {name for name in names if not name.endswith(".safetensors")} == {
        *("config.json", "privacy_card.json", "tokenizer/config.json")
    }
    assert load_release(home).card == card
    text = "".join(path.read_text() for path in home.rglob("*.json"))
    assert "loss" not in json.dumps(sorted(json.loads((home / "config.json").read_text())))
    assert str(tmp_path) not in text

    *_, rows = draw(run, "A person", 7)
    labels = ["public, ε = 0", f"yours, ε = {epsilon_text(card.epsilon)}"]
    assert [label for _, label in rows.images] == labels
    assert "seed 7" in rows.status
    for change in ({"seed": float("nan")}, {"caption": "x" * 5_000}):
        with pytest.raises(gr.Error):
            list(draw(run, **{"caption": "x", "seed": 1} | change))
    drawn_elsewhere(run)
    run.remove()
    assert kept(tmp_path) == []
    for ask in asking_for_mine(run):
        with pytest.raises(gr.Error, match="no model of yours here, or no longer"):
            ask()


def drawn_elsewhere(run: Run) -> None:
    """In the other tabs the run's visitor has one checkpoint more, and nobody else has."""
    card = load_card(run.release)
    mine = DPWaveletPipeline.from_pretrained(run.release)("x", seed=7, upsampler="bicubic")
    *_, last = generate(YOURS, "x", 7, 1, 1.5, 0.5, "bicubic", own=run)
    np.testing.assert_array_equal(last.shown.image, mine.image)
    assert last.shown.title == "your model, seed 7"
    assert f"private model (ε = {epsilon_text(card.epsilon)})" in last.authors
    assert "link to this drawing" not in last.status
    promise, whole = describe_checkpoint(YOURS, run)
    assert promise.startswith(f"**ε = {epsilon_text(card.epsilon)} at")
    assert whole == card.to_markdown()
    for rows in compare_captions(YOURS, "x", 7, "bicubic", own=run):
        pictures = [np.asarray(Image.open(path)) for path, _ in rows.images]
    np.testing.assert_array_equal(pictures[0], mine.image[0])
    for rows in compare_checkpoints("faces", "x", 7, "bicubic", own=run):
        pictures = [np.asarray(Image.open(path)) for path, _ in rows.images]
    np.testing.assert_array_equal(pictures[-1], mine.image[0])
    *others, own = (label for _, label in rows.images)
    assert (len(others), own) == (3, f"yours, ε = {epsilon_text(card.epsilon)}")
    with pytest.raises(gr.Error, match="trained on 'your-upload': those records are private"):
        next(nearest(last.shown, "faces/public", 50, run))
    names = checkpoint_names()
    assert choices(run, names)[:-1] == choices(None, names) == [(n, n) for n in names]
    assert choices(run, names)[-1] == (f"yours, ε = {epsilon_text(card.epsilon)}", YOURS)
    assert offered(run, names, YOURS).constructor_args.get("value") is None
    assert offered(None, names, YOURS).value == names[1]
    for ask in asking_for_mine(None):
        with pytest.raises(gr.Error, match="no model of yours here"):
            ask()
    with pytest.raises(gr.Error, match=f"Expected checkpoint='{run.release}'"):
        next(generate(str(run.release), "x", 7, 1, 1.5, 0.5, "bicubic", own=run))
    with pytest.raises(gr.Error, match="checkpoint='your model' in the link"):
        opened({"seed": "1", "checkpoint": YOURS})


def asking_for_mine(run: Run | None) -> list[Callable[[], object]]:
    return [
        lambda: next(generate(YOURS, "x", 7, 1, 1.5, 0.5, "bicubic", own=run)),
        lambda: describe_checkpoint(YOURS, run),
        lambda: next(compare_captions(YOURS, "x", 7, "bicubic", own=run)),
    ]


def test_nothing_happens_without_a_plan():
    for ask in (
        lambda: next(train.train(None)),
        lambda: stop(None),
        lambda: next(draw(None, "", 0)),
    ):
        with pytest.raises(gr.Error):
            ask()


@pytest.mark.slow
def test_a_process_of_its_own_trains_is_stopped_and_goes_on(tmp_path, files):
    run = planned(files=files, steps=3, epsilon=10.0).run
    for report in run.train():
        if report["stage"] == "training":
            stop(run)
    assert 1 <= len(run.reports) < 3
    assert not run.running
    assert not run.release.exists()
    assert [report["stage"] for report in run.train()][-1] == "release"
    assert load_card(run.release).steps == 3
    run.remove()
    assert kept(tmp_path) == []


@pytest.fixture
def slow_process(monkeypatch):
    """In the place of training, a real process that reports one step and then takes its time."""
    step = {"stage": "training", "step": 1, "steps": 3, "loss": 2.0, "epsilon": 1.0}
    program = f"import time; print({json.dumps(json.dumps(step))}, flush=True); time.sleep(600)"

    def start(*_):
        return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)

    monkeypatch.setattr(runs, "_start", start)


def test_stop_and_a_closed_page_end_the_process(files, measured, slow_process):
    run = planned(files=files).run
    frames = train.train(run)
    assert next(frames).status == "Starting …"
    assert next(frames).status.startswith("**1 of 3 steps**, ε = 1 of 3 spent, private loss 2.000")
    with pytest.raises(gr.Error, match="still at work"):
        list(train.train(run))
    process = run._process
    assert process.poll() is None
    stop(run)
    assert "stopped" in next(frames).status
    assert process.poll() is not None
    assert not run.running
    frames = train.train(run)
    assert "1 of 3" in [next(frames), next(frames)][-1].status
    process = run._process
    frames.close()
    assert process.poll() is not None
    frames = train.train(run)
    assert "1 of 3" in [next(frames), next(frames)][-1].status
    process = run._process
    run.remove()
    assert process.poll() is not None
    assert not run.folder.exists()


def test_time_is_limited(files, measured, slow_process, monkeypatch):
    run = planned(files=files).run
    monkeypatch.setattr(runs, "MAX_TRAIN_MINUTES", 0.02)
    with pytest.raises(gr.Error, match=r"Stopped at the limit of 0\.02 minutes"):
        list(train.train(run))
    assert not run.running


def test_a_process_that_fails_says_where_to_look(files, measured, monkeypatch):
    program = [sys.executable, "-c", "raise SystemExit(2)"]
    monkeypatch.setattr(
        runs, "_start", lambda *_: subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    )
    with pytest.raises(gr.Error, match="the server's log says why"):
        list(train.train(planned(files=files).run))


def test_a_plan_takes_the_last_model_off_the_other_tabs_even_where_it_fails():
    functions = build_demo().fns.values()
    (made,) = [function for function in functions if function.api_name == "plan"]
    after = [function for function in functions if function.trigger_after == made._id]
    told = {(f.trigger_only_on_success, f.trigger_only_on_failure) for f in after}
    assert told == {(True, False), (False, True)}


def test_a_run_that_the_system_ended_is_not_told_as_stopped(files, measured, slow_process):
    run = planned(files=files).run
    frames = train.train(run)
    assert "1 of 3" in [next(frames), next(frames)][-1].status
    run._process.kill()
    with pytest.raises(gr.Error, match=r"the server ended it \(signal 9\), most likely to save"):
        list(frames)


def test_faces_are_rendered_for_the_run_alone(tmp_path, measured):
    last = planned(source=FACES, count=12)
    assert last.run.order.plan.records == 12
    assert (last.run.folder / "cache" / "faces-train-12" / "manifest.json").exists()
    assert not (tmp_path / "shared").exists()


@pytest.mark.parametrize(
    ("value", "there"), [("", True), ("on", True), ("off", False), ("false", False), ("0", False)]
)
def test_the_tab_can_be_switched_off(monkeypatch, value, there):
    monkeypatch.setenv("DPWG_TRAIN_TAB", value)
    names = {block.api_name for block in build_demo().fns.values()}
    assert ({"plan", "train", "stop", "draw"} <= names) is there


def test_the_bounds_are_told():
    assert f"{MAX_TRAIN_MINUTES} minutes a run" in described()
    assert f"removed {KEPT_SECONDS // 60} minutes after" in described()


def test_repeated_records_are_told_on_the_page(files, measured, monkeypatch):
    line = json.dumps({"stage": "note", "told": "2 of 9 records hold an image"})

    def start(*_):
        program = [sys.executable, "-c", f"print({line!r})"]
        return subprocess.Popen(program, stdout=subprocess.PIPE, text=True)

    warned = []
    monkeypatch.setattr(runs, "_start", start)
    monkeypatch.setattr(gr, "Warning", warned.append)
    *_, last = train.train(planned(files=files).run)
    assert warned == ["2 of 9 records hold an image"]
    assert "stopped" in last.status
