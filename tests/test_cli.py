"""The command line: answers that a program reads, files that a person opens, plain errors."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cards import recarded
from PIL import Image

from dpwg import launch
from dpwg.cli import VERBS, main, overview, parsed
from dpwg.cli.console import as_table
from dpwg.measure.membership import MembershipAttack, result_file
from dpwg.measure.releases import LEAST, attackable
from dpwg.release.folder import find_checkpoint, load_release, named_weights_sha256
from dpwg.release.shared import save_tokenizer


def ask(capsys, *arguments: object):
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def shelf(root, monkeypatch, tmp_path):
    """The tiny releases as the checkpoints in use, with a cache of their own."""
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(root))
    monkeypatch.setenv("DPWG_CACHE", str(tmp_path / "cache"))
    return root


def test_account_answers_with_noise_and_epsilon_by_three_accountants(capsys):
    shape = ["--records", "60000", "--batch", "1024", "--steps", "250", "--delta", "1e-5"]
    found = ask(capsys, "account", *shape, "--epsilon", 3)
    assert found["noise_multiplier"] == pytest.approx(0.81, abs=0.01)
    assert found["epsilon_pld"] <= 3 <= found["epsilon_rdp"]
    assert found["epsilon_prv"] == pytest.approx(found["epsilon_pld"], rel=0.01)
    back = ask(capsys, "account", *shape, "--noise-multiplier", found["noise_multiplier"])
    assert back["epsilon_pld"] == pytest.approx(found["epsilon_pld"])
    assert ask(capsys, "account", *shape, "--noise-multiplier", 0)["epsilon"] is None


def test_account_composes_what_several_releases_spend(capsys, shelf):
    card = shelf / "faces" / "eps-1" / "privacy_card.json"
    one = ask(capsys, "account", "--compose", card)
    two = ask(capsys, "account", "--compose", card, "faces/eps-1", "faces/public")
    assert one["epsilon"] < two["epsilon"] < two["sum_of_epsilons"]
    assert two["sum_of_epsilons"] == 2 * one["epsilon"]
    assert two["steps"] == 2 * one["steps"]
    without = ask(capsys, "account", "--compose", card, "faces/eps-inf")
    assert without["epsilon"] is None


REFUSED = {
    "batch over records": ("account --records 5 --batch 9 --steps 1 --epsilon 1", "(0, 1]"),
    "large delta": (
        "account --records 200000 --batch 9 --steps 1 --epsilon 1 --delta 1e-5",
        "1/records",
    ),
    "no plan": ("account --records 5 --batch 1 --steps 1", "--compose"),
    "no records": ("account --records 0 --batch 1 --steps 1 --epsilon 1", "records=0"),
    "no checkpoint": ("sample --caption x --checkpoint no/such --out out", "no/such"),
    "no picture": ("sample --checkpoint faces/eps-1 --caption x --n 0 --out out", "--n"),
    "no set": ("data nonsense", "nonsense"),
    "no count": ("data faces-test --count 0", "count=0 in [1, 5000]"),
    "not rendered": ("evaluate --count 77", "run `python -m dpwg data faces-test --count 77`"),
    "few canaries": ("audit --count 3", "batch_size=0"),
    "no noise": ("audit --epsilons 0", "target_epsilon=0.0"),
    "few records": ("attack faces/eps-1 --count 99", "count=99"),
    "no others": ("attack", "--others"),
    "another verb": ("finetun --epsilon 3", "perhaps finetune"),
    "private base": (
        "finetune --epsilon 1 --base faces/eps-1 --run-folder r --out o",
        "to be public",
    ),
    "no preset": ("tokenizer --preset huge", "preset='huge'"),
    **{
        f"promise {promise}": (f"finetune --batch 2 --run-folder r --out o {promise}", told)
        for promise, told in (
            ("--epsilon 0", "target_epsilon=0.0"),
            ("--epsilon nan", "target_epsilon=nan"),
            ("--epsilon=-inf", "target_epsilon=-inf"),
            ("--noise-multiplier 0", "--epsilon inf"),
            ("--noise-multiplier nan", "--epsilon inf"),
        )
    },
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_ends_with_2_and_one_plain_line(
    capsys, shelf, case, monkeypatch, image_folder, tmp_path
):
    monkeypatch.chdir(tmp_path)
    line, message = REFUSED[case]
    own = ["--data", str(image_folder)] if case.startswith(("promise", "private")) else []
    assert main([*line.split(), *own]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert message in told[0]
    assert not list(tmp_path.glob("o*"))


@pytest.mark.parametrize(
    "words", ["finetune --epsilom 3", "list --yaml", "account --records many", "sample --out o"]
)
def test_what_cannot_be_parsed_ends_with_2(capsys, words):
    assert main(words.split()) == 2
    assert "--help" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "told", "status"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out"), "disk is full at out", 2),
        (PermissionError(errno.EACCES, "Permission denied", "out"), "may not read or write out", 2),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.txt"), "no a.txt", 2),
        (ModuleNotFoundError("No module", name="gradio"), "'gradio'", 2),
        (ValueError("Expected a pear."), "Expected a pear.", 2),
        (torch.OutOfMemoryError("CUDA out of memory."), "--micro-batch", 2),
        (KeyboardInterrupt(), "Stopped", 130),
    ],
)
def test_every_ending_is_one_sentence(capsys, error, told, status):
    def program() -> None:
        raise error

    assert launch.run(program) == status
    said = capsys.readouterr().err.strip()
    assert told in said
    assert said.count("\n") == 0


def test_no_network_at_push_is_one_sentence(capsys, shelf, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    assert main(["push", "faces/eps-1", "somebody/something"]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert told[-1].startswith("dpwg: ")
    assert "Traceback" not in "".join(told)


def test_faults_of_the_package_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        launch.run(lambda: 1 // 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told(capsys, shelf, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "image-0.png").symlink_to("/dev/full")
    (tmp_path / "out" / "coarse-0.png").symlink_to("/dev/full")
    (tmp_path / "out" / "result.json").symlink_to("/dev/full")
    words = ["sample", "--checkpoint", "faces/eps-1", "--caption", "a", "--upsampler", "bicubic"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "disk is full" in capsys.readouterr().err


def private_run(*more: object) -> list[str]:
    words = "finetune --epsilon 5 --delta 1e-3 --batch 4 --steps 3 --micro-batch 2 --lora-rank 2"
    return [*words.split(), *map(str, more)]


@pytest.fixture
def own(shelf, tmp_path, image_folder):
    """Where a release goes, and what finetunes it."""
    out = tmp_path / "out"
    places = ("--data", image_folder, "--run-folder", tmp_path / "run", "--out", out)
    return out, private_run(*places)


def check_private_release(told, out):
    assert 4.9 < told["epsilon"] <= 5
    release = load_release(out)
    assert (release.card.steps, release.card.records) == (3, 12)
    assert release.card.epsilon == told["epsilon"]
    before = load_release("faces/public").model
    pairs = zip(release.model.parameters(), before.parameters(), strict=True)
    assert any(not torch.equal(p, q) for p, q in pairs)


def test_a_folder_of_ones_own_becomes_a_private_release(capsys, own):
    out, command = own
    check_private_release(ask(capsys, *command), out)


def test_two_processes_make_one_private_release(own):
    out, command = own
    launched = ("-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "dpwg")
    ran = subprocess.run([sys.executable, *launched, *command, "--json"], capture_output=True)
    assert ran.returncode == 0, ran.stderr.decode()
    check_private_release(json.loads(ran.stdout), out)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("--out", "DATA"), "found '0.png'"),
        (("--count", "5"), "count=5 of a data set"),
        (("--tokenizer", "OTHER"), "the one that the model was trained with"),
        (("--save-every", "0"), "save_every"),
        (("--micro-batch", "0"), "micro_batch"),
        (("--lora-rank", "-1"), "lora_rank"),
        (("--learning-rate", "nan"), "learning_rate"),
        (("--ema-decay", "1"), "ema_decay"),
    ],
)
def test_what_cannot_be_trained_is_told_before_anything_is_lost(
    capsys, own, image_folder, changed, message, make_tokenizer, tmp_path
):
    out, command = own
    before = sorted(image_folder.iterdir())
    save_tokenizer(tmp_path / "other", make_tokenizer(1))
    places = {"DATA": str(image_folder), "OTHER": str(tmp_path / "other")}
    assert main([*command, *(places.get(word, word) for word in changed)]) == 2
    assert message in capsys.readouterr().err
    assert sorted(image_folder.iterdir()) == before
    assert not out.exists()


def test_a_plan_tells_noise_and_time_and_trains_nothing(capsys, shelf, tmp_path, image_folder):
    sizes = ["--batch", "4", "--steps", "30", "--delta", "1e-3", "--epsilon", "2"]
    told = ask(capsys, "finetune", "--plan", "--data", image_folder, *sizes)
    assert (told["records"], told["steps"]) == (12, 30)
    assert told["sampling_rate"] == 4 / 12
    assert 1.99 < told["epsilon"]["pld"] <= 2 < told["epsilon"]["rdp"]
    assert told["epsilon"]["prv"] == pytest.approx(told["epsilon"]["pld"], rel=0.01)
    assert 0 < told["trainable_parameters"] < told["parameters"]
    assert told["hours"] == pytest.approx(30 * told["seconds_per_step"] / 3600)
    # A batch of 4 is padded to one micro-batch, and 100 records take two.
    assert told["micro_batch"] == 64
    assert told["seconds_per_step"] == told["seconds_per_micro_batch"]
    told = ask(capsys, "finetune", "--plan", "--records", 200, "--batch", 100, *sizes[2:])
    assert told["seconds_per_step"] == 2 * told["seconds_per_micro_batch"]
    assert told["peak_bytes"] > 50e6
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_settings_come_from_the_preset_and_the_options_change_them():
    settings = parsed("tokenizer", ["--preset", "photos-128", "--steps", "7"]).keywords["settings"]
    assert (settings.batch, settings.learning_rate, settings.steps) == (128, 1e-3, 7)
    settings = parsed("tokenizer", ["--preset=faces-128"]).keywords["settings"]
    assert (settings.batch, settings.learning_rate) == (64, 8e-4)


def test_list_shows_the_sound_releases_and_names_the_damaged_one(
    capsys, shelf, monkeypatch, tmp_path
):
    shutil.copytree(shelf, tmp_path / "shelf")
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(tmp_path / "shelf"))
    rows = {row["name"]: row for row in ask(capsys, "list")}
    assert list(rows) == ["faces/public", "faces/eps-1", "faces/eps-inf"]
    assert rows["faces/public"]["epsilon"] == 0
    assert rows["faces/eps-inf"]["epsilon"] is None
    assert {
        "epsilon", "delta", "accountant", "steps", "sampling_rate", "noise_multiplier",
        "max_grad_norm", "records", "dataset", "parameters", "bytes",
    } <= set(rows["faces/eps-1"])  # fmt: skip
    (tmp_path / "shelf" / "faces" / "eps-1" / "privacy_card.json").write_text("{")
    assert main(["list", "--json"]) == 0
    told = capsys.readouterr()
    assert [row["name"] for row in json.loads(told.out)] == ["faces/public", "faces/eps-inf"]
    assert "faces/eps-1" in told.err


def test_sample_writes_pictures_and_facts_and_leaves_no_old_ones(
    capsys, shelf, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    words = ["sample", "--checkpoint", "faces/eps-1", "--caption", "a face", "--seed", 7]
    words += ["--upsampler", "bicubic", "--device", "cpu", "--out", out]
    told = ask(capsys, *words, "--n", 2)
    assert json.loads((out / "result.json").read_text()) == told
    assert (told["seed"], told["coarse_size"], told["image_size"]) == (7, 32, 128)
    assert told["epsilon"] == load_release("faces/eps-1").card.epsilon
    assert set(told["seconds"]) == {"text", "tokens", "upsampling", "total"}
    for index in range(2):
        assert Image.open(out / f"coarse-{index}.png").size == (32, 32)
        assert Image.open(out / f"image-{index}.png").size == (128, 128)
    assert np.asarray(Image.open(out / "bands.png")).std() > 0
    ask(capsys, *words, "--n", 1)
    left = sorted(path.name for path in out.iterdir())
    assert left == ["bands.png", "coarse-0.png", "image-0.png", "result.json"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main([*map(str, words[:-1]), str(tmp_path / "none"), "--device", "cuda"]) == 2
    assert "device='cuda' to be here" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def drawn_folder(folder: Path, first: int, count: int) -> Path:
    """A data set of small pictures, each of a colour of its own."""
    folder.mkdir()
    rows = [{"file_name": f"{index}.png", "text": f"number {index}"} for index in range(count)]
    for index, row in enumerate(rows, start=first):
        Image.new("RGB", (8, 8), (index, 3 * index % 256, 90)).save(folder / row["file_name"])
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_attack_reaches_every_checkpoint_that_saw_records(capsys, shelf, monkeypatch, tmp_path):
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setattr("dpwg.training.encodings.CHUNK", 12)
    shutil.copytree(shelf, tmp_path / "checkpoints")
    members = drawn_folder(tmp_path / "members", 0, 50)
    others = drawn_folder(tmp_path / "others", 50, 6)
    shutil.copytree(members, tmp_path / "copy")
    for name in ("eps-1", "eps-inf"):
        folder = tmp_path / "checkpoints" / "faces" / name
        recarded(folder, dataset="members", records=50)
    where = ["--data", str(members), "--others", str(others)]
    assert main(["attack", *where]) == 2
    assert f"Expected {LEAST} or more records of each kind, found 6" in capsys.readouterr().err
    monkeypatch.setattr("dpwg.measure.releases.LEAST", 6)
    asked = ["attack", *where, "--count", "9", "--results", str(tmp_path / "found"), "--json"]
    assert main(asked) == 0
    answer = capsys.readouterr()
    warning = f"What is found of faces/eps-1 is as private as '{members.name}'"
    assert warning in answer.err
    rows = json.loads(answer.out)
    assert [row["checkpoint"] for row in rows] == ["faces/eps-1", "faces/eps-inf"]
    for row in rows:
        path = tmp_path / "found" / result_file(row["checkpoint"])
        found = MembershipAttack.from_json(json.loads(path.read_text()))
        assert (found.members, found.nonmembers) == (row["members"], row["nonmembers"]) == (9, 6)
        assert found.weights == named_weights_sha256(find_checkpoint(row["checkpoint"]))
        assert (found.data, found.others) == (members.name, "others")
        assert (found.epsilon, found.auc) == (row["epsilon"], row["auc"])
        assert not any("0.01" in name for name in row)  # six records tell no rate of 1 %
    for refused, message in (
        (["faces/public", *where], "nothing to infer"),
        (["--data", str(others), "--others", str(members)], "found 6 of 'others'"),
        (["faces/eps-1", "--data", str(members)], "Expected --others"),
        (["--data", str(members), "--others", str(members)], "left out"),
        (["--data", str(members), "--others", str(tmp_path / "copy")], "left out"),
        (["--reference", "faces/eps-1", *where], "to be public"),
    ):
        assert main(["attack", *refused]) == 2
        assert message in capsys.readouterr().err
    recarded(tmp_path / "checkpoints" / "faces" / "eps-inf", dataset="faces-train")
    assert attackable(None) == ["faces/eps-inf"]


def dpwg(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **more}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment)


def test_help_names_every_verb_within_a_second():
    dpwg("-m", "dpwg", "--help")  # compiles and reads what it needs
    started = time.monotonic()
    ran = dpwg("-m", "dpwg", "--help")
    assert time.monotonic() - started < 1
    assert ran.stdout.strip() == overview()
    assert all(f"\n  {verb} " in ran.stdout for verb in VERBS)


def test_a_reader_that_has_seen_enough_is_no_error(root):
    command = [sys.executable, "-m", "dpwg", "list", "--json"]
    environment = {**os.environ, "DPWG_CHECKPOINTS": str(root)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as listing:
        listing.stdout.close()
        told = listing.stderr.read()
    assert told == ""
    assert listing.returncode == 0


@pytest.mark.parametrize("missing", ["tyro", "dicebear", "gradio"])
def test_a_missing_package_is_one_line_with_the_way_out(tmp_path, missing):
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError(name='{missing}')")
    app = str(Path(__file__).parent.parent / "app.py")
    verb = ["-m", "dpwg", "data", "faces-test", "--count", "1"]
    ran = dpwg(
        *([app] if missing == "gradio" else verb),
        PYTHONPATH=f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        DPWG_CACHE=str(tmp_path / "cache"),
    )
    assert ran.returncode == 2
    last = ran.stderr.splitlines()[-1]
    assert f"'{missing}'" in last
    assert "pip install -r requirements.txt" in last
    assert "Traceback" not in ran.stderr


def test_a_person_reads_no_internals():
    answer = {"noise": None, "whole": True, "epsilon": {"pld": 2.0, "rdp": None}, "bytes": 1234567}
    answer["names"], answer["broken"] = ("a", "b"), {"0.png": "cut"}
    assert as_table(answer).splitlines() == [
        "noise: none",
        "whole: yes",
        "epsilon: pld 2, rdp none",
        "bytes: 1,234,567",
        "names: ",
        "  a",
        "  b",
        "broken: ",
        "  0.png: cut",
    ]
