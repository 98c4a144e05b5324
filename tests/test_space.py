"""The folder for Spaces: what is in it, what never is, and that its app starts alone."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
from app_server import serving

from dpwg.cli import main
from dpwg.release import space as space_module
from dpwg.release.folder import load_release, save_release
from dpwg.release.space import write_space
from dpwg.training.run_state import save_state
from dpwg.ui import pipelines

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def checkpoints(root, tmp_path_factory) -> Path:
    """The tiny releases, with a private run beside and inside one of them."""
    folder: Path = tmp_path_factory.mktemp("space") / "checkpoints"
    shutil.copytree(root, folder)
    for run in (folder / "runs" / "a", folder / "faces" / "eps-1" / "run"):
        save_state(run, {"momentum": torch.ones(2)}, {"loss": 1.0})
    return folder


@pytest.fixture(autouse=True)
def _checkpoints(checkpoints, monkeypatch) -> None:
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(checkpoints))


@pytest.fixture(scope="module")
def space(checkpoints) -> Path:
    out = checkpoints.parent / "space"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DPWG_CHECKPOINTS", str(checkpoints))
        names = ("--checkpoints", "faces/eps-1", "faces/public")
        assert main(["space", "--out", str(out), *names]) == 0
    return out


def test_a_space_holds_the_app_and_its_checkpoints_whole_and_nothing_else(
    space, checkpoints
) -> None:
    files = {path.relative_to(space).as_posix() for path in space.rglob("*") if path.is_file()}
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "dpwg"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert set(tracked) <= files
    assert {"README.md", "requirements.txt", "app.py", "docs/results/held-out.json"} <= files
    folders = {file.rpartition("/")[0] for file in files if file.startswith("checkpoints/")}
    assert folders == {
        f"checkpoints/{n}" for n in ("tokenizer", "upsampler", "faces/eps-1", "faces/public")
    }
    assert not any(re.search(r"(^|/)(run|runs|tests|state|begun|\.git)(/|$)", f) for f in files)
    assert {Path(file).suffix for file in files} <= {
        "", ".md", ".css", ".jinja", ".typed", ".txt", ".py", ".json", ".png", ".safetensors",
    }  # fmt: skip
    beside = {file for file in files if file.startswith(("docs/", "examples/"))}
    assert beside == {file for file in space_module.FILES if "/" in file}
    assert "\napp_file: app.py\n" in (space / "README.md").read_text()
    assert "*.safetensors filter=lfs" in (space / ".gitattributes").read_text()
    before, after = (
        load_release(at / "faces" / "eps-1") for at in (checkpoints, space / "checkpoints")
    )
    assert (after.card, after.weights_sha256) == (before.card, before.weights_sha256)
    config = (space / "checkpoints" / "faces" / "eps-1" / "config.json").read_bytes()
    assert config == (checkpoints / "faces" / "eps-1" / "config.json").read_bytes()


def test_only_shipped_checkpoints_with_a_bound_are_taken_unless_named(
    checkpoints, tmp_path, monkeypatch
) -> None:
    shutil.copytree(checkpoints, tmp_path / "checkpoints")
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(tmp_path / "checkpoints"))
    save_release(tmp_path / "checkpoints" / "mine" / "eps-5", load_release("faces/eps-1"))

    def taken(out: str, *names: str, **options: bool) -> set[str]:
        files = write_space(tmp_path / out, names, **options)
        found = re.findall(r"checkpoints/(\w+/[\w-]+)/privacy_card.json", "\n".join(files))
        return set(found)

    assert taken("a") == {"faces/public", "faces/eps-1"}
    assert taken("b", without_bound=True) == {"faces/public", "faces/eps-1", "faces/eps-inf"}
    assert taken("c", "mine/eps-5") == {"mine/eps-5"}
    with pytest.raises(ValueError, match="training records may be reproduced"):
        taken("d", "faces/eps-inf")
    for name in ("faces/none", "../a/faces/eps-1", "runs/a", "tokenizer"):
        with pytest.raises(ValueError, match="Expected checkpoints="):
            taken("d", name)
    assert not (tmp_path / "d").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="to be new"):
        taken("mine", "faces/eps-1")
    assert not [*(tmp_path / "mine").iterdir()]


def test_what_lies_beside_the_app_stays_and_links_are_refused(tmp_path, monkeypatch) -> None:
    copy = tmp_path.resolve() / "checkout"
    shutil.copytree(ROOT / "dpwg", copy / "dpwg", ignore=shutil.ignore_patterns("__pycache__"))
    for name in space_module.FILES:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    mine = ("examples/mine.txt", "docs/mine.png", "docs/results/mine.json", "dpwg/mine.csv")
    for name in mine:
        (copy / name).write_text("mine")
    monkeypatch.setattr(space_module, "ROOT", copy)
    assert not set(mine) & write_space(tmp_path / "a").keys()
    (copy / "dpwg" / "linked.py").symlink_to(copy / "examples" / "mine.txt")
    (copy / "examples" / "captions.txt").unlink()
    with pytest.raises(ValueError, match=r"at \['examples/captions\.txt', 'dpwg/linked\.py'\]"):
        write_space(tmp_path / "b")
    assert not (tmp_path / "b").exists()


def page(python: Path | str, space: Path, scratch: Path) -> str:
    """The page of the folder's app, with the checkpoints that lie beside it."""
    command = (python, space / "app.py")
    with (
        serving(space, scratch, command=command, DPWG_CHECKPOINTS="") as (address, _),
        urllib.request.urlopen(address) as answer,
    ):
        return str(answer.read().decode())


def test_the_app_of_a_space_starts_alone_and_serves_its_own_checkpoints(space, tmp_path) -> None:
    shown = page(sys.executable, space, tmp_path)
    assert "<title>DP-Wavelet</title>" in shown or '"title":"DP-Wavelet"' in shown
    assert '["faces/eps-1","faces/eps-1"]' in shown
    assert '["faces/eps-inf","faces/eps-inf"]' not in shown


@pytest.mark.slow
def test_a_space_runs_on_its_own_requirements(space, tmp_path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "-r", space / "requirements.txt"], check=True
    )
    assert "faces/eps-1" in page(python, space, tmp_path)


SPACES = """
asked = []

def GPU(function):
    def borrowed(*arguments):
        asked.append(arguments)
        yield from function(*arguments)
    return borrowed
"""


def test_zero_gpu_is_asked_where_its_package_is_there_and_only_then(monkeypatch, tmp_path) -> None:
    drawing = {"seed": 3, "upsampler": "bicubic"}
    load = functools.partial(pipelines.load_pipeline, "faces/eps-1")
    plain = [*pipelines.draw(load, ("a face",), **drawing)]
    (tmp_path / "spaces.py").write_text(SPACES)
    monkeypatch.syspath_prepend(tmp_path)
    lent = [*pipelines.draw(load, ("a face",), **drawing)]
    spaces = sys.modules.pop("spaces")
    assert spaces.asked == [(load, ("a face",), drawing)]
    assert len(lent) == len(plain) == 4
    assert (lent[-1].image == plain[-1].image).all()
