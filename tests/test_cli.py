"""The command line: answers that a program reads, files that a person opens, errors in one line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cards import recarded
from PIL import Image

from dpwg.cli import main, parser
from dpwg.cli.console import table
from dpwg.cli.measure import _to_attack
from dpwg.measure.membership import MembershipAttack, result_file
from dpwg.release.folder import find_checkpoint, load_release, named_weights_sha256, save_tokenizer


def ask(capsys, *arguments: str):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_account_answers_with_noise_and_epsilon_by_three_accountants(capsys):
    shape = ("--records", "60000", "--batch", "1024", "--steps", "250", "--delta", "1e-5")
    found = ask(capsys, "account", *shape, "--epsilon", "3")
    assert found["noise_multiplier"] == pytest.approx(0.81, abs=0.01)
    assert found["epsilon_pld"] <= 3 <= found["epsilon_rdp"]
    assert found["epsilon_prv"] == pytest.approx(found["epsilon_pld"], rel=0.01)
    noise = str(found["noise_multiplier"])
    back = ask(capsys, "account", *shape, "--noise-multiplier", noise)
    assert back["epsilon_pld"] == pytest.approx(found["epsilon_pld"])


def test_no_noise_has_no_epsilon(capsys):
    found = ask(
        capsys, "account", "--records", "100", "--batch", "10", "--steps", "3", "--delta", "1e-3",
        "--noise-multiplier", "0",
    )  # fmt: skip
    assert found["epsilon"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("account", "--records", "5", "--batch", "9", "--steps", "1", "--epsilon", "1"), "(0, 1]"),
        (
            (
                "account",
                "--records",
                "200000",
                "--batch",
                "9",
                "--steps",
                "1",
                "--epsilon",
                "1",
                "--delta",
                "1e-5",
            ),
            "1/records",
        ),
        (("sample", "--caption", "x", "--checkpoint", "no/such", "--out", "out"), "no/such"),
        (("data", "nonsense"), "nonsense"),
        (("data", "faces-test", "--count", "0"), "count=0 in [1, 5000]"),
        (("evaluate", "--count", "77"), "run `python -m dpwg data faces-test --count 77` first"),
        (
            ("account", "--records", "0", "--batch", "1", "--steps", "1", "--epsilon", "1"),
            "records=0",
        ),
        (("sample", "--caption", "x", "--per-caption", "2", "--out", "o"), "no per-caption=2"),
        (("evaluate", "--sheet", "a.png", "--results", "b.json"), "no results="),
        (("evaluate", "--sheet", "a.png", "--count", "3"), "no count=3 with --sheet"),
        (
            ("evaluate", "--temperature", "1"),
            "no temperature=1.0 with the loss",
        ),
        (("evaluate", "--colours", "5", "--seed", "3"), "no seed=3 with --colours"),
        (("audit", "--engine", "--data", "x"), "no data='x'"),
        (("audit", "--engine", "--reference", "x"), "no reference='x' with --engine"),
        (("tokenizer", "--evaluate", "public-test", "--steps", "3"), "no steps=3 with --evaluate"),
        (("upsampler", "--evaluate", "public-test", "--seed", "3"), "no seed=3 with --evaluate"),
    ],
)
def test_bad_input_ends_with_2_and_one_clear_line(capsys, arguments, message):
    assert main(arguments) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert message in told[0]


def test_training_from_a_private_checkpoint_is_refused(capsys, root, monkeypatch, tmp_path):
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(root))
    folders = ("--run-folder", str(tmp_path / "run"), "--out", str(tmp_path / "out"))
    assert main(["finetune", "--epsilon", "1", "--base", "faces/eps-1", *folders]) == 2
    assert "to be public, found epsilon=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("promise", "message"),
    [
        (("--epsilon", "0"), "target_epsilon=0.0"),
        (("--epsilon", "nan"), "target_epsilon=nan"),
        (("--epsilon=-inf",), "target_epsilon=-inf"),
        (("--noise-multiplier", "0"), "pass --epsilon inf"),
        (("--noise-multiplier", "nan"), "pass --epsilon inf"),
    ],
)
def test_training_never_goes_without_noise_by_accident(
    capsys, root, monkeypatch, tmp_path, image_folder, promise, message
):
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(root))
    where = ("--data", str(image_folder), "--run-folder", str(tmp_path / "r"))
    assert main(["finetune", *promise, "--batch", "2", *where, "--out", str(tmp_path / "o")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


FINETUNE = (
    "--epsilon", "5", "--delta", "1e-3", "--batch", "4", "--steps", "3", "--micro-batch", "2",
    "--lora-rank", "2",
)  # fmt: skip


def check_private_release(told, out):
    assert 4.9 < told["epsilon"] <= 5
    release = load_release(out)
    assert (release.card.steps, release.card.records) == (3, 12)
    assert release.card.epsilon == told["epsilon"]
    before = load_release("faces/public").model
    assert any(
        not torch.equal(p, q)
        for p, q in zip(release.model.parameters(), before.parameters(), strict=True)
    )


@pytest.fixture
def own(root, monkeypatch, tmp_path, image_folder):
    """Where a release goes, and what finetunes it."""
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(root))
    monkeypatch.setenv("DPWG_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    places = ("--data", image_folder, "--run-folder", tmp_path / "run", "--out", out)
    return out, ("finetune", *FINETUNE, *map(str, places))


def test_a_folder_of_ones_own_becomes_a_private_release(capsys, own):
    out, command = own
    check_private_release(ask(capsys, *command), out)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("--out", "DATA"), "found '0.png' in it"),
        (("--count", "5"), "count=5 with data="),
        (("--save-every", "0"), "save_every=0"),
        (("--micro-batch", "0"), "micro_batch=0"),
        (("--lora-rank", "-1"), "lora_rank=-1"),
        (("--learning-rate", "nan"), "learning_rate=nan"),
        (("--ema-decay", "1"), "ema_decay=1.0"),
    ],
)
def test_what_cannot_be_trained_is_told_before_anything_is_lost(
    capsys, own, image_folder, changed, message
):
    out, command = own
    before = sorted(image_folder.iterdir())
    changed = (str(image_folder) if word == "DATA" else word for word in changed)
    assert main([*command, *changed]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert message in told[-1]
    assert sorted(image_folder.iterdir()) == before
    assert not out.exists()


def test_another_tokenizer_than_the_bases_is_refused(capsys, own, make_tokenizer, tmp_path):
    _, command = own
    save_tokenizer(tmp_path / "other", make_tokenizer(1))
    assert main([*command, "--tokenizer", str(tmp_path / "other")]) == 2
    assert "the one that the model was trained with" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_two_processes_make_one_private_release(own):
    out, command = own
    launch = ("-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "dpwg")
    run = subprocess.run([sys.executable, *launch, *command, "--json"], capture_output=True)
    assert run.returncode == 0, run.stderr.decode()
    check_private_release(json.loads(run.stdout), out)


def test_a_plan_tells_noise_and_time_and_trains_nothing(
    capsys, root, monkeypatch, tmp_path, image_folder
):
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(root))
    monkeypatch.setenv("DPWG_CACHE", str(tmp_path / "cache"))
    sizes = ("--batch", "4", "--steps", "30", "--delta", "1e-3", "--epsilon", "2")
    told = ask(capsys, "finetune", "--plan", "--data", str(image_folder), *sizes)
    assert (told["records"], told["steps"]) == (12, 30)
    assert told["sampling_rate"] == 4 / 12
    assert 1.99 < told["epsilon"]["pld"] <= 2 < told["epsilon"]["rdp"]
    assert told["epsilon"]["prv"] == pytest.approx(told["epsilon"]["pld"], rel=0.01)
    assert 0 < told["trainable_parameters"] < told["parameters"]
    assert told["hours"] == pytest.approx(30 * told["seconds_per_step"] / 3600)
    # A batch of 4 is padded to one micro-batch, and 100 records take two.
    assert told["micro_batch"] == 64
    assert told["seconds_per_step"] == told["seconds_per_micro_batch"]
    more = ("--records", "200", "--batch", "100", *sizes[2:])
    told = ask(capsys, "finetune", "--plan", *more)
    assert told["seconds_per_step"] == 2 * told["seconds_per_micro_batch"]
    assert told["peak_bytes"] > 50e6
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_list_and_sample_with_a_real_release(capsys, tmp_path, root, monkeypatch):
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(root))
    rows = {row["name"]: row for row in ask(capsys, "list")}
    assert list(rows) == ["faces/public", "faces/eps-1", "faces/eps-inf"]
    assert rows["faces/public"]["epsilon"] == 0
    assert rows["faces/eps-inf"]["epsilon"] is None
    row = rows["faces/eps-1"]
    assert {
        "epsilon", "delta", "accountant", "steps", "sampling_rate", "noise_multiplier",
        "max_grad_norm", "records", "dataset", "parameters", "bytes",
    } <= set(row)  # fmt: skip
    out = tmp_path / "out"
    told = ask(
        capsys, "sample", "--checkpoint", "faces/eps-1", "--caption", "a face", "--n", "2",
        "--seed", "7", "--upsampler", "bicubic", "--out", str(out),
    )  # fmt: skip
    kept = json.loads((out / "result.json").read_text())
    assert kept == told
    assert kept["seed"] == 7
    assert kept["epsilon"] == row["epsilon"]
    assert kept["coarse_size"] == 32
    assert kept["image_size"] == 128
    assert set(kept["seconds"]) == {"text", "tokens", "upsampling", "total"}
    for index in range(2):
        assert Image.open(out / f"coarse-{index}.png").size == (32, 32)
        assert Image.open(out / f"image-{index}.png").size == (128, 128)
    assert np.asarray(Image.open(out / "bands.png")).std() > 0


def test_audit_attacks_every_checkpoint_that_saw_records(
    capsys, root, monkeypatch, tmp_path, image_folder
):
    monkeypatch.setenv("DPWG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setattr("dpwg.training.examples.CHUNK", 12)
    shutil.copytree(root, tmp_path / "checkpoints")
    for name in ("eps-1", "eps-inf"):
        folder = tmp_path / "checkpoints" / "faces" / name
        recarded(folder, dataset=image_folder.name, records=12)
    others = tmp_path / "others"
    shutil.copytree(image_folder, others)
    (others / "metadata.jsonl").write_text(
        "\n".join((image_folder / "metadata.jsonl").read_text().splitlines()[:6])
    )
    where = ("--data", str(image_folder), "--others", str(others))
    asked = ("audit", *where, "--count", "9", "--results", str(tmp_path / "found"), "--json")
    assert main([*asked]) == 0
    answer = capsys.readouterr()
    rows = json.loads(answer.out)
    warning = f"What is found of faces/eps-1 is as private as '{image_folder.name}'"
    assert warning in answer.err
    assert [row["checkpoint"] for row in rows] == ["faces/eps-1", "faces/eps-inf"]
    assert [row["allowed_0.01"] for row in rows][1] == 1
    for row in rows:
        path = tmp_path / "found" / result_file(row["checkpoint"])
        found = MembershipAttack.from_json(json.loads(path.read_text()))
        assert (found.members, found.nonmembers) == (row["members"], row["nonmembers"]) == (9, 6)
        assert found.weights == named_weights_sha256(find_checkpoint(row["checkpoint"]))
        assert (found.data, found.others) == (image_folder.name, "others")
        assert (found.epsilon, found.auc) == (row["epsilon"], row["auc"])
    for refused, message in (
        (("--checkpoint", "faces/public", *where), "nothing to infer"),
        (("--data", str(others), "--others", str(image_folder)), "found 6 of 'others'"),
        (("--data", str(image_folder)), "Expected --checkpoint and --others"),
        (("--data", str(image_folder), "--checkpoint", "faces/eps-1"), "Expected --others"),
        (("--data", str(image_folder), "--others", str(image_folder)), "left out"),
        (("--reference", "faces/eps-1", *where), "to be public, found epsilon="),
        (("--count", "1"), "count=1"),
        (("--results", "found.json", *where), "to be a folder"),
        (("--engine", "0"), "target_epsilon=0.0"),
        (("--engine", "--count", "3"), "batch_size=0"),
    ):
        assert main(["audit", *refused]) == 2
        assert message in capsys.readouterr().err
    recarded(tmp_path / "checkpoints" / "faces" / "eps-inf", dataset="faces-train")
    assert _to_attack(parser().parse_args(["audit"])) == ["faces/eps-inf"]


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


def test_where_pictures_are_drawn_can_be_chosen(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(root))
    ask = ["sample", "--checkpoint", "faces/eps-1", "--caption", "a bob", "--upsampler", "bicubic"]
    assert main([*ask, "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "image-0.png").exists()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main([*ask, "--device", "cuda", "--out", str(tmp_path / "none")]) == 2
    assert "device='cuda' to be here" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_missing_package_is_one_line_with_the_way_out(tmp_path):
    """As under a Python outside the environment: without site packages."""
    verb = ["-m", "dpwg", "data", "faces-test", "--count", "1"]
    app = str(Path(__file__).parent.parent / "app.py")
    for program, missing in ((["-S", *verb], "tqdm"), (verb, "dicebear"), (["-S", app], "gradio")):
        if missing == "dicebear":
            (tmp_path / "dicebear.py").write_text("raise ModuleNotFoundError(name='dicebear')")
        done = subprocess.run(
            [sys.executable, *program],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(tmp_path), "DPWG_CACHE": str(tmp_path / "cache")},
        )
        assert done.returncode == 2
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"dpwg: Expected the package '{missing}' to be installed for ")
        assert "pip install -r requirements.txt" in last
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["finetune", "--epsilom", "3"], "'--epsilom'; near it is --epsilon. "),
        (["list", "--yaml"], "found '--yaml'. "),
        (["account", "--records", "many"], "argument --records: invalid int value: 'many'. "),
        ([], "required: verb. "),
    ],
)
def test_a_mistyped_command_is_one_line_that_names_the_word(capsys, words, told):
    with pytest.raises(SystemExit) as ended:
        main(words)
    text = capsys.readouterr().err
    assert (ended.value.code, text.count("\n")) == (2, 1)
    assert text.startswith("dpwg: ")
    assert told in text
    assert text.endswith("--help` shows what there is.\n")


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "--caption", "--a woman smiles", "--seed=3", "--out", "o"],
        ["evaluate", "--colour=3", "--result", "file"],
        ["data", "--count", "3", "--", "--odd-name"],
        ["finetune", "--epsilon=-inf", "--plan"],
    ],
)
def test_what_argparse_understands_is_not_called_mistyped(words):
    assert parser().parse_args(words)


def test_help_is_shown_beside_a_mistyped_option(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["finetune", "--help", "--epsilom"])
    assert ended.value.code == 0
    assert "--epsilon EPSILON" in capsys.readouterr().out


def test_a_person_reads_no_internals():
    answer = {"noise": None, "whole": True, "epsilon": {"pld": 2.0, "rdp": None}, "bytes": 1234567}
    assert table(answer).splitlines() == [
        "noise: none",
        "whole: yes",
        "epsilon: pld 2, rdp none",
        "bytes: 1,234,567",
    ]
