"""Rooms import downward only, light imports stay light, and nothing needs Unix to be imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dpwg

PACKAGE = Path(dpwg.__file__).parent
ROOMS = ["privacy", "data", "method", "upsampling", "release", "training", "measure", "cli", "ui"]
"""Each may import what stands before it. Files beside the rooms may be imported by all."""
HEAVY = {"gradio", "diffusers", "transformers", "torch", "opacus", "matplotlib", "resvg_py"}
UNIX = ("fcntl", "resource", "pwd", "grp", "termios", "posix_ipc")


def imported(path: Path) -> list[str]:
    """The modules of dpwg that a file imports when it is imported itself."""
    return [
        node.module
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dpwg.")
    ]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*/*.py")), ids=str)
def test_no_room_imports_upward(path: Path) -> None:
    own = ROOMS.index(path.relative_to(PACKAGE).parts[0])
    for module in imported(path):
        room = module.split(".")[1]
        assert room not in ROOMS or ROOMS.index(room) <= own, module
        assert own != 0 or room == "privacy", "privacy/ knows nothing else"


def test_no_module_imports_itself() -> None:
    graph = {name: set(imported(path)) for path, name in modules().items()}
    while leaves := {name for name, above in graph.items() if not above & graph.keys()}:
        graph = {name: above for name, above in graph.items() if name not in leaves}
    assert not graph, f"cycles among {sorted(graph)}"


def modules() -> dict[Path, str]:
    return {
        path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
    }


def loaded(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True)
    assert ran.returncode == 0, ran.stderr.decode()
    return set(ran.stdout.decode().split())


def test_light_imports_stay_light() -> None:
    assert not loaded("import dpwg, dpwg.cli, dpwg.cli.releases, dpwg.cli.privacy") & HEAVY
    names = "dpwg.privacy.accounting, dpwg.privacy.one_run_audit, dpwg.privacy.card"
    assert "torch" not in loaded(f"import {names}")
    found = loaded(
        "import dpwg.method.pipeline, dpwg.upsampling.upsamplers as u; u.all_upsamplers()"
    )
    assert not found & {"gradio", "diffusers", "transformers", "opacus", "dpwg.training.private"}


def test_everything_can_be_imported_without_unix() -> None:
    """What others import of these modules stays: only the package's own imports are refused."""
    names = sorted({name.removesuffix(".__init__") for name in modules().values()})
    names.remove("dpwg.__main__")
    loaded(
        "import builtins, importlib, torch, gradio, opacus, transformers, matplotlib.pyplot\n"
        "own = builtins.__import__\n"
        "def checked(name, about=None, *more):\n"
        "    caller = (about or {}).get('__name__') or ''\n"
        f"    assert not (name in {UNIX} and caller.startswith('dpwg')), (caller, name)\n"
        "    return own(name, about, *more)\n"
        "builtins.__import__ = checked\n"
        f"for name in {names}: importlib.import_module(name)"
    )
