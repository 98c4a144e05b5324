"""The installed package: whole, light, and of use from anywhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def tracked(*places: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", *places], cwd=ROOT, capture_output=True, text=True)
    return [Path(line) for line in listed.stdout.split()]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Where pip put the package, built from the files under version control."""
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "site"))
    for path in tracked("dpwg", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes((ROOT / path).read_bytes())
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, target, source], check=True)
    return target


def python(installed: Path, folder: Path, code: str, **more: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "DPWG_CHECKPOINTS"}
    environment |= {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1", **more}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_every_file_of_the_package_is_installed_and_no_weights(installed):
    there = {path.relative_to(installed) for path in installed.rglob("*")}
    assert not [path for path in tracked("dpwg") if path not in there]
    assert not list(installed.rglob("*.safetensors"))


def test_the_package_is_of_use_from_another_folder(installed, tmp_path):
    ran = python(
        installed,
        tmp_path,
        "import dpwg, sys; assert 'torch' not in sys.modules; print(dpwg.__file__)\n"
        "import dpwg.ui.demo, importlib.metadata as m; print(m.version('dpwg'), dpwg.__version__)\n"
        "pipe = dpwg.DPWaveletPipeline.from_pretrained('faces/eps-10')\n"
        "print(pipe('a face', seed=1, upsampler='bicubic').image.shape)",
        DPWG_CHECKPOINTS=str(ROOT / "checkpoints"),
    )
    assert ran.returncode == 0, ran.stderr
    file, versions, shape = ran.stdout.splitlines()
    assert Path(file).is_relative_to(installed)
    assert len(set(versions.split())) == 1
    assert shape == "(1, 128, 128, 3)"


def test_without_checkpoints_a_sentence_says_where_they_are_looked_for(installed, tmp_path):
    ran = python(
        installed,
        tmp_path,
        "from dpwg.cli import main\n"
        "main(['sample', '--checkpoint', 'faces/eps-10', '--caption', 'a', '--out', 'o'])\n"
        "main(['bench'])",
    )
    told = ran.stderr.strip().splitlines()
    assert len(told) == 2
    assert "faces/eps-10" in told[0]
    assert "DPWG_CHECKPOINTS" in told[0]
    assert "git clone" in told[1]
