"""From records to a release: what is kept, who may read it, what is told, and what goes wrong."""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
import signal
import stat
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch

from dpwg.data import open_records
from dpwg.files import private_folder
from dpwg.method.encoders import default_encoder
from dpwg.privacy.accounting import PrivacyPlan
from dpwg.release.folder import load_card, load_release
from dpwg.release.shared import load_tokenizer
from dpwg.training import encodings
from dpwg.training.encodings import (
    encode_examples,
    encode_images,
    new_array,
    open_arrays,
    prepare_examples,
)
from dpwg.training.optimizer import Progress
from dpwg.training.private import Finetuning
from dpwg.training.recipe import UNNAMED, Trained, count_units, train_private
from dpwg.training.run_state import load_state, locked, save_state, steps_begun

PLAN = PrivacyPlan(
    records=12, batch_size=6, steps=4, delta=1e-3, noise_multiplier=2.0, max_grad_norm=0.1
)
SETTINGS = Finetuning(micro_batch=4, lora_rank=2, save_every=2, warmup=1)
unix = pytest.mark.skipif(os.name == "nt", reason="rights are those of Unix")


@pytest.fixture(autouse=True)
def _small(monkeypatch, root) -> None:
    monkeypatch.setattr(encodings, "CHUNK", 12)
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(root))


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """The encodings of all tests here: they are made once."""
    return tmp_path_factory.mktemp("kept") / "encoded"


@pytest.fixture
def given(image_folder, cache, tmp_path) -> dict[str, Any]:
    """What a run takes besides its plan."""
    return {
        "records": open_records(str(image_folder)),
        "out": tmp_path / "out",
        "folder": tmp_path / "run",
        "settings": SETTINGS,
        "cache": cache,
    }


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_run_stopped_and_resumed_ends_in_a_release_that_tells_of_it(given) -> None:
    for report in train_private(plan=PLAN, **given):
        if isinstance(report, Progress) and report.stage == "training" and report.step == 3:
            break  # the third step is not saved: it is lost
    assert steps_begun(given["folder"]) == 3
    *steps, trained = train_private(plan=PLAN, **given)
    assert [report.step for report in steps if report.stage == "training"] == [3, 4]
    assert isinstance(trained, Trained)
    card = load_card(given["out"])
    assert card == trained.card
    (entry,) = card.ledger.entries
    assert (entry.steps, entry.lost, card.steps) == (4, 1, 4)
    assert card.epsilon == pytest.approx(PLAN.epsilons().pld)
    assert "5 steps that were begun 4 were finished" in card.to_markdown()
    again = deque(train_private(plan=PLAN, **given), maxlen=1).pop()  # there is nothing left to do
    assert again.card.ledger == card.ledger
    model = load_release(given["out"]).model
    assert all(p.isfinite().all() for p in model.parameters())


def test_steps_begun_are_those_of_one_run_even_before_any_was_saved(given) -> None:
    for report in train_private(plan=PLAN, **given):
        if isinstance(report, Progress) and report.stage == "training":
            break
    (given["folder"] / "state").unlink(missing_ok=True)
    quieter = dataclasses.replace(PLAN, noise_multiplier=2 * PLAN.noise_multiplier)
    with pytest.raises(ValueError, match="plan of the run"):
        deque(train_private(plan=quieter, **given), maxlen=0)


@pytest.mark.parametrize("called", [None, "Portraits"])
def test_the_name_of_a_folder_stays_private(given, called, image_folder) -> None:
    named = {"called": called} if called else {}
    deque(train_private(plan=PLAN, **given, **named), maxlen=0)
    assert load_card(given["out"]).dataset == (called or UNNAMED)
    for path in given["out"].rglob("*.json"):
        assert image_folder.name not in path.read_text()


@unix
def test_what_is_private_is_closed_to_others_and_a_release_is_not(given) -> None:
    before = os.umask(0o077)
    try:
        deque(train_private(plan=PLAN, **given), maxlen=0)
    finally:
        os.umask(before)
    for private in (given["folder"], given["cache"]):
        assert {mode(path) & 0o077 for path in (private, *private.rglob("*"))} == {0}
    for path in (given["out"], *given["out"].rglob("*")):
        assert mode(path) == (0o755 if path.is_dir() else 0o644)


def test_what_cannot_be_is_refused_before_anything_is_encoded(given, tmp_path) -> None:
    other_plan = PrivacyPlan(**{**vars(PLAN), "records": 11})
    inside = given | {"folder": given["out"] / "run"}
    for plan, own, told in ((other_plan, given, "plan for 12"), (PLAN, inside, "outside of out")):
        with pytest.raises(ValueError, match=told):
            next(train_private(plan=plan, **own | {"cache": tmp_path / "other"}))
    assert not (tmp_path / "other").exists()
    assert count_units(given["records"]) == 12


def test_a_place_that_cannot_be_written_is_found_before_the_first_step(
    given, monkeypatch, tmp_path
) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(given["out"]))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(PermissionError):
        next(train_private(plan=PLAN, **given))
    assert not given["folder"].exists()


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    holds = (
        "import sys, time; from pathlib import Path; from dpwg.training.run_state import locked\n"
    )
    holds += f"with locked(Path({str(tmp_path)!r})): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", holds], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"held"
        with pytest.raises(ValueError, match="another process is training in it"), locked(tmp_path):
            pass
        process.kill()
    with locked(tmp_path):  # a lock ends with its process, however that ends
        pass


STATE = {"steps": torch.tensor(2), "parameter/a": torch.ones(3)}


def swapped(folder: Path) -> None:
    """The tensors of one run under the values of another."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(folder / "state", "pt") as file:
        facts = file.metadata()
    save_file(STATE | {"parameter/a": torch.zeros(3)}, folder / "state", metadata=facts)


def cut(folder: Path) -> None:
    (folder / "state").write_bytes((folder / "state").read_bytes()[:-4])


def emptied(folder: Path) -> None:
    (folder / "state").write_bytes(b"")


@pytest.mark.parametrize("damage", [swapped, cut, emptied])
def test_a_state_is_whole_or_refused(tmp_path: Path, damage) -> None:
    save_state(tmp_path, STATE, {"ledger": [], "data": "mine"})
    tensors, values = load_state(tmp_path, {"data": "mine"}) or ({}, {})
    assert values["ledger"] == []
    assert torch.equal(tensors["parameter/a"], torch.ones(3))
    damage(tmp_path)
    with pytest.raises(ValueError, match="found damage"):
        load_state(tmp_path, {"data": "mine"})


# Encodings


def test_a_cut_encoding_is_made_again(given, root, tmp_path) -> None:
    tokenizer = load_tokenizer(root / "tokenizer")
    own = (given["records"], default_encoder(), tokenizer, tmp_path / "encoded")
    first = prepare_examples(*own).batch(torch.arange(12))
    assert list(encode_examples(*own)) == []
    for path in (tmp_path / "encoded").rglob("*.npy"):
        path.write_bytes(path.read_bytes()[:-1])
    assert {report.stage for report in encode_examples(*own)} == {"captions", "images"}
    second = prepare_examples(*own).batch(torch.arange(12))
    assert torch.equal(first.states_BLD, second.states_BLD)
    assert all(map(torch.equal, first.codes, second.codes))


def test_other_captions_do_not_encode_the_images_again(given, root, tmp_path, image_folder) -> None:
    tokenizer = load_tokenizer(root / "tokenizer")
    before = list(encode_images(given["records"], tokenizer, tmp_path))
    assert before[-1].step == 12
    table = image_folder / "metadata.jsonl"
    text = table.read_text()
    try:
        table.write_text(text.replace("image 3", "another caption"))
        records = open_records(str(image_folder))
    finally:
        table.write_text(text)
    assert records.digest != given["records"].digest
    assert list(encode_images(records, tokenizer, tmp_path)) == []


def test_one_process_encodes_and_the_others_wait_for_it(image_folder, root, tmp_path) -> None:
    """No barrier is in it: who comes later finds the encodings made."""
    program = (
        "import sys, torch; from pathlib import Path; from dpwg.data import open_records\n"
        "from dpwg.release.shared import load_tokenizer\n"
        "from dpwg.training.encodings import encode_images\n"
        "data, tokenizer, cache = sys.argv[1:]\n"
        "records, tokenizer = open_records(data), load_tokenizer(Path(tokenizer))\n"
        "print(len(list(encode_images(records, tokenizer, Path(cache)))))"
    )
    words = [str(image_folder), str(root / "tokenizer"), str(tmp_path / "cache")]
    command = [sys.executable, "-c", program, *words]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    reports = sorted(int(process.communicate(timeout=120)[0]) for process in both)
    assert reports == [0, 1]


def test_arrays_on_disk_are_what_was_written(tmp_path: Path) -> None:
    private_folder(tmp_path)
    kinds = (torch.bfloat16, torch.int64, torch.int16, torch.uint8, torch.bool)
    for kind in kinds:
        new_array(tmp_path, str(kind)[6:], kind, (2, 3))[1] = 1
    found = open_arrays(tmp_path)
    assert {tensor.dtype for tensor in found.values()} == set(kinds)
    assert all(tensor.tolist() == [[0] * 3, [1] * 3] for tensor in found.values())


@unix
def test_a_full_disk_is_an_error_and_no_signal(tmp_path: Path, monkeypatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        new_array(tmp_path, "large", torch.uint8, (10,))


def test_ctrl_c_ends_in_one_sentence_that_says_how_to_go_on(given, image_folder, tmp_path) -> None:
    command = [
        *(sys.executable, "-m", "dpwg", "finetune", "--data", str(image_folder)),
        *("--epsilon", "3", "--steps", "400", "--batch", "6", "--lora-rank", "2"),
        *("--micro-batch", "12", "--run-folder", str(given["folder"]), "--out", str(given["out"])),
    ]
    environment = os.environ | {"DPWG_CACHE": str(tmp_path / "cache")}
    heard = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(  # whoever runs the tests may have had it ignored
        command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heard
    ) as process:
        until = time.time() + 60
        while steps_begun(given["folder"]) < 6 and process.poll() is None and time.time() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    last = told.strip().splitlines()[-1]
    assert str(given["folder"]) in last
    assert "--resume" in last
    assert "Traceback" not in told
