"""The Train tab: plans, runs that stop and go on, and what a visitor takes home."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from dpwg.method.pipeline import DPWaveletPipeline
from dpwg.privacy.accounting import PrivacyPlan, default_delta, epsilon_text
from dpwg.privacy.curves import max_true_positive_rates
from dpwg.release.folder import checkpoint_names, load_card, load_release
from dpwg.training.cost import Rehearsal
from dpwg.training.optimizer import Progress
from dpwg.training.private import PrivateTraining
from dpwg.training.recipe import Note
from dpwg.ui import runs, train
from dpwg.ui.compare import compare_captions, compare_checkpoints
from dpwg.ui.demo import build_demo
from dpwg.ui.drawing import from_query, generate
from dpwg.ui.limits import KEPT_SECONDS, MAX_RUNS, MAX_TRAIN_MINUTES, MAX_TRAIN_RECORDS
from dpwg.ui.nearest import nearest
from dpwg.ui.own import YOURS, choices, describe_checkpoint, offered
from dpwg.ui.plans import MAX_GRAD_NORM, Order, default_batch, expectation, noise_to_signal
from dpwg.ui.runs import Faces, Run
from dpwg.ui.train import FACES, UPLOAD, draw, plan, stop

MEASURED = Rehearsal(
    parameters=20_000,
    trainable_parameters=10_000,
    micro_batch=64,
    precision="float32",
    seconds_per_micro_batch=0.5,
    seconds_per_step=0.5,
    hours=0.0,
    peak_bytes=0,
)
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
def files(image_folder, tmp_path) -> list[str]:
    """An upload, as Gradio hands it over."""
    sent = shutil.copytree(image_folder, tmp_path / "sent")
    return [str(path) for path in sorted(sent.iterdir())]


class Cut(BaseException):
    """Ends a run as the end of its process does."""


@pytest.fixture
def here(monkeypatch):
    """Runs train in this process, without the wait for another one to start."""

    def work(self, task, *inputs):
        with suppress(Cut):
            yield from task(*inputs)

    monkeypatch.setattr(Run, "_work", work)


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(Run, "measure", lambda self, order: MEASURED)


def planned(**changes) -> train.Planned:
    *_, last = plan(**ASKED | changes)
    return last


def kept(tmp_path) -> list[Path]:
    return sorted((tmp_path / "runs").iterdir())


def test_the_plan_is_that_of_the_accounting(files, measured):
    last = planned(files=files)
    expected = PrivacyPlan.calibrated(
        records=12,
        batch_size=3,
        steps=3,
        delta=default_delta(12),
        max_grad_norm=MAX_GRAD_NORM,
        target_epsilon=3.0,
    )
    assert last.run.order == Order("faces/public", expected, 3.0)
    assert planned(previous=last.run, files=files, batch=0, delta=0).run.order == last.run.order
    figures = dict(last.table)
    assert figures["noise multiplier"] == f"{expected.noise_multiplier:.4g}"
    assert figures["epsilon (PLD)"] == epsilon_text(expected.epsilons().pld)
    assert (figures["records"], figures["sampling rate"]) == ("12", "0.25")
    ratio = noise_to_signal(expected.noise_multiplier, 3, 10_000)
    assert ratio == pytest.approx(expected.noise_multiplier * 100 / 3)
    assert f"**{ratio:.2g} times**" in last.told
    card = load_card(Path(os.environ["DPWG_CHECKPOINTS"]) / "faces" / "eps-1")
    peer = noise_to_signal(card.noise_multiplier, 100, 10_000)
    assert f"{peer:.2g} for `faces/eps-1` (5,000 records)" in last.told


def test_what_an_attacker_may_find_is_told_by_the_whole_curve(files, measured):
    """The pair of epsilon 10 and its delta alone would allow everything."""
    last = planned(files=files, epsilon=10.0)
    (most,) = max_true_positive_rates(last.run.order.plan.ledger, [0.01])
    (told,) = (float(word) for word in last.told.split("at most ")[1].split()[:1])
    assert most <= told / 100 <= most + 1e-3 < 0.9


def test_quality_is_not_promised_where_noise_is_loud():
    quiet = PrivacyPlan(
        records=4000, batch_size=1000, steps=3, delta=1e-5, noise_multiplier=1.0, max_grad_norm=0.1
    )
    loud = replace(quiet, noise_multiplier=20.0)
    told = [expectation(plan, MEASURED, "faces/public") for plan in (quiet, loud)]
    assert ["Expect little" in words for words in told] == [False, True]


@pytest.mark.parametrize("records", [10, 11, 99, 100, 1000, MAX_TRAIN_RECORDS])
def test_the_default_batch_is_a_part_of_the_records(records):
    assert 1 <= default_batch(records) <= records


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("base", ["faces/eps-1", "../faces/public"]),
        ("count", [10**9, math.nan, None, 9]),
        ("epsilon", [math.inf, math.nan, None, 0, "much"]),
        ("steps", [101, 1.5, None]),
        ("batch", [math.nan, -1, 101]),
        ("delta", [math.nan, -1.0, 0.01]),
    ],
)
def test_bad_wishes_are_refused_and_leave_nothing(tmp_path, name, values):
    for value in values:
        with pytest.raises(gr.Error, match=rf"{name}|records"):
            planned(source=FACES, **{name: value})
    assert kept(tmp_path) == []


def test_a_bad_upload_leaves_nothing(tmp_path, files, measured):
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(gr.Error) as error:
        planned(files=[str(tmp_path / "a.zip")])
    assert str(tmp_path) not in str(error.value)
    assert not (tmp_path / "a.zip").exists()
    with pytest.raises(gr.Error, match="first"):
        planned()
    assert kept(tmp_path) == []


def test_an_upload_is_read_once_and_serves_every_plan_of_its_page(tmp_path, files, monkeypatch):
    slow = replace(MEASURED, seconds_per_micro_batch=60 * MAX_TRAIN_MINUTES / 2)
    with monkeypatch.context() as context:
        context.setattr(Run, "measure", lambda self, order: slow)
        frames = []
        with pytest.raises(gr.Error, match="more than the limit"):
            frames.extend(plan(**ASKED | {"files": files}))
        (folder,) = kept(tmp_path)
        assert not any(Path(file).exists() for file in files)
        with pytest.raises(gr.Error, match="choose them again"):
            planned(files=files)  # another visitor, or a page that was opened anew
    monkeypatch.setattr(Run, "measure", lambda self, order: MEASURED)
    run = Run()
    shutil.rmtree(run.folder)
    run.folder, run._upload = folder, (tuple(files), 12)
    again = planned(files=files, previous=run, steps=2)
    assert again.run.order.plan.steps == 2
    assert kept(tmp_path) == [again.run.folder]
    with pytest.raises(gr.Error, match="choose them again"):
        planned(previous=again.run, files=[*files, "other.png"])
    assert kept(tmp_path) == []


def test_a_plan_that_nobody_waits_for_leaves_nothing(tmp_path, measured):
    frames = plan(**ASKED | {"source": FACES})
    assert next(frame for frame in frames if frame.run).run.folder.exists()
    frames.close()
    assert kept(tmp_path) == []


def test_runs_are_counted_and_old_ones_removed(tmp_path, monkeypatch):
    folders = [Run().folder for _ in range(MAX_RUNS)]
    assert {folder.stat().st_mode & 0o777 for folder in folders} == {0o700}
    with pytest.raises(ValueError, match=f"All {MAX_RUNS} places"):
        Run()
    past = time.time() - KEPT_SECONDS - 60 * MAX_TRAIN_MINUTES - 5
    os.utime(folders[0], (past, past))
    assert Run().folder not in folders
    assert not folders[0].exists()
    monkeypatch.setattr(runs.shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    folders[1].rmdir()
    with pytest.raises(ValueError, match="disk is full"):
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
                raise Cut

    with monkeypatch.context() as context:
        context.setattr(PrivateTraining, "run", cut)
        frames = list(train.train(run))
    assert "2 of 4 steps" in frames[-1].status
    assert frames[-1].files is None
    assert frames[-1].loss.axes[0].get_ylabel().startswith("PRIVATE")
    frames = list(train.train(run))
    assert [report.step for report in run.reports] == [1, 2, 3, 4]
    card = load_card(run.release)
    assert (card.steps, card.records, card.dataset) == (4, 12, "your-upload")
    assert len(card.ledger.entries) == 1
    assert card.noise_multiplier == run.order.plan.noise_multiplier
    assert card.epsilon == pytest.approx(card.ledger.pld_epsilon(card.delta))
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
    for change in ({"seed": math.nan}, {"caption": "x" * 5_000}):
        with pytest.raises(gr.Error):
            list(draw(run, **{"caption": "x", "seed": 1} | change))
    drawn_elsewhere(run)
    run.remove()
    assert kept(tmp_path) == []
    refused(run)


def drawn_elsewhere(run: Run) -> None:
    """In the other tabs the run's visitor has one checkpoint more, and nobody else has."""
    card = load_card(run.release)
    mine = DPWaveletPipeline.from_pretrained(run.release)("x", seed=7, upsampler="bicubic")
    *_, last = generate(YOURS, "x", 7, 1, 1.5, 0.5, "bicubic", own=run)
    np.testing.assert_array_equal(last.shown.image, mine.image)
    assert f"private model (ε = {epsilon_text(card.epsilon)})" in last.authors
    assert describe_checkpoint(YOURS, run)[1] == card.to_markdown()
    for rows in compare_captions(YOURS, "x", 7, "bicubic", own=run):
        pictures = [np.asarray(Image.open(path)) for path, _ in rows.images]
    np.testing.assert_array_equal(pictures[0], mine.image[0])
    for rows in compare_checkpoints("faces", "x", 7, "bicubic", own=run):
        pictures = [np.asarray(Image.open(path)) for path, _ in rows.images]
    np.testing.assert_array_equal(pictures[-1], mine.image[0])
    *others, own = (label for _, label in rows.images)
    assert (len(others), own) == (3, f"yours, ε = {epsilon_text(card.epsilon)}")
    with pytest.raises(gr.Error, match="private"):
        next(nearest(last.shown, "faces/public", 50, run))
    names = checkpoint_names()
    assert choices(None, names) == [(name, name) for name in names]
    assert choices(run, names) == [
        *choices(None, names),
        (f"yours, ε = {epsilon_text(card.epsilon)}", YOURS),
    ]
    assert offered(run, names, YOURS).constructor_args.get("value") is None
    assert offered(None, names, YOURS).value in names
    refused(None)
    with pytest.raises(gr.Error):
        next(generate(str(run.release), "x", 7, 1, 1.5, 0.5, "bicubic", own=run))
    with pytest.raises(ValueError, match="checkpoint"):
        from_query({"seed": "1", "checkpoint": YOURS})


def refused(run: Run | None) -> None:
    """Nobody draws with a model that is not there, or not theirs."""
    asks: list[Callable[[], object]] = [
        lambda: next(generate(YOURS, "x", 7, 1, 1.5, 0.5, "bicubic", own=run)),
        lambda: describe_checkpoint(YOURS, run),
        lambda: next(compare_captions(YOURS, "x", 7, "bicubic", own=run)),
    ]
    for ask in asks:
        with pytest.raises(gr.Error, match="no model of yours here"):
            ask()


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
        if report.stage == "training":
            stop(run)
    assert 1 <= len(run.reports) < 3
    assert not run.running
    assert not run.release.exists()
    assert [report.step for report in run.train()][-1] == 3
    assert load_card(run.release).steps == 3
    run.remove()
    assert kept(tmp_path) == []


def one_step_then_rest(*_):
    """In the place of training, in a real process."""
    yield Progress(step=1, steps=3, loss=2.0, epsilon=1.0)
    time.sleep(600)


def a_failure(*_):
    yield Note(told="2 of 9 records hold an image")
    raise RuntimeError("of the server alone")


def begun(run: Run):
    """A run's frames from its first step on, and its process."""
    frames = train.train(run)
    assert "1 of 3" in next(frame for frame in frames if frame.loss).status
    return frames, run._process


def test_stop_and_a_closed_page_end_the_process(measured, monkeypatch):
    monkeypatch.setattr(runs, "train_order", one_step_then_rest)
    run = planned(source=FACES).run
    frames, process = begun(run)
    with pytest.raises(gr.Error, match="still at work"):
        list(train.train(run))
    assert process.is_alive()
    stop(run)
    assert not process.is_alive()
    assert "stopped" in next(frames).status
    assert not run.running
    frames, process = begun(run)
    frames.close()
    assert not process.is_alive()
    frames, process = begun(run)
    process.kill()  # as a system does that runs out of memory
    with pytest.raises(gr.Error, match="to save memory"):
        list(frames)
    monkeypatch.setattr(runs.limits, "MAX_TRAIN_MINUTES", 0.0)
    with pytest.raises(gr.Error, match=r"0\.0 minutes, the limit, are over"):
        list(train.train(run))
    assert not run.running
    monkeypatch.undo()
    run.remove()
    assert not run.folder.exists()


def test_a_process_that_fails_says_where_to_look(measured, monkeypatch):
    monkeypatch.setattr(runs, "train_order", a_failure)
    warned = []
    monkeypatch.setattr(gr, "Warning", warned.append)
    with pytest.raises(gr.Error, match="the server's log says why"):
        list(train.train(planned(source=FACES).run))
    assert warned == ["2 of 9 records hold an image"]


SERVER = """
import sys
from dpwg.ui import runs
from test_ui_train import one_step_then_rest
if __name__ == "__main__":
    work = runs.Run()._work(one_step_then_rest)
    next(work)
    print(work.gi_frame.f_locals["process"].pid, flush=True)
    sys.stdin.read()
"""


def test_a_run_ends_with_its_server_however_that_ends(tmp_path):
    program = tmp_path / "server.py"
    program.write_text(SERVER)
    here = Path(__file__).parent
    server = subprocess.Popen(
        [sys.executable, program],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(here.parent), str(here)])}
        | {"GRADIO_TEMP_DIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    run = int(server.stdout.readline())
    os.kill(run, 0)
    server.kill()
    server.communicate()
    for _ in range(100):
        try:
            os.kill(run, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the run goes on without its server")


def test_a_plan_takes_the_last_model_off_the_other_tabs_even_where_it_fails():
    functions = build_demo().fns.values()
    (made,) = [function for function in functions if function.api_name == "plan"]
    after = [function for function in functions if function.trigger_after == made._id]
    told = {(f.trigger_only_on_success, f.trigger_only_on_failure) for f in after}
    assert told == {(True, False), (False, True)}


def test_faces_are_those_of_the_set():
    records = Faces("train", range(3, 6))
    assert (len(records), records.name) == (3, "faces-train")
    assert records[0] == Faces("train", range(10))[3]
    assert len({Faces("train", range(n)).digest for n in (1, 2, 3)}) == 3


@pytest.mark.parametrize(
    ("value", "there"), [("", True), ("on", True), ("off", False), ("false", False), ("0", False)]
)
def test_the_tab_can_be_switched_off(monkeypatch, value, there):
    monkeypatch.setenv("DPWG_TRAIN_TAB", value)
    names = {block.api_name for block in build_demo().fns.values()}
    assert ({"plan", "train", "stop", "draw"} <= names) is there
