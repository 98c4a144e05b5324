"""Imports go downward only, and light imports stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dpwg

PACKAGE = Path(dpwg.__file__).parent
LEVELS = {
    "dpwg": 0,
    "dpwg.config": 0,
    "dpwg.inputs": 1,
    "dpwg.download": 0,
    "dpwg.wavelet": 1,
    "dpwg.images": 1,
    "dpwg.device": 0,
    "dpwg.launch": 0,
    "dpwg.layers": 1,
    "dpwg.codebook": 1,
    "dpwg.privacy": 1,
    "dpwg.text": 1,
    "dpwg.spectra": 1,
    "dpwg.superresolution": 2,
    "dpwg.matcher": 2,
    "dpwg.parts": 1,
    "dpwg.encoders": 2,
    "dpwg.data": 2,
    "dpwg.tokenizer": 2,
    "dpwg.diffusion": 3,
    "dpwg.predictive": 3,
    "dpwg.model": 3,
    "dpwg.sampling": 4,
    "dpwg.saved": 1,
    "dpwg.adapters": 2,
    "dpwg.checkpoint": 4,
    "dpwg.upsample": 5,
    "dpwg.hub": 5,
    "dpwg.training": 5,
    "dpwg.presets": 6,
    "dpwg.pipeline": 6,
    "dpwg.training.recipe": 7,
    "dpwg.evaluate": 7,
    "dpwg.fidelity": 7,
    "dpwg.sheet": 7,
    "dpwg.membership": 8,
    "dpwg.bench": 7,
    "dpwg.readme": 7,
    "dpwg.space": 7,
    "dpwg.export": 7,
    "dpwg.cli": 9,
    "dpwg.__main__": 10,
    "dpwg.ui": 10,
}
INSIDE = {  # the order within a package, lowest first
    "dpwg.data": (
        *("palette", "captions", "avatars", "decode", "records", "files", "folder", "coco"),
        *("tensors", "cache"),
        *("celeba", "webdataset", "parquet", "fashion", "formats", "groups", "check"),
        *("grammar", "official", "photos", "public_photos"),
        *("faces", "public", "prompts", "pictures", "upload"),
    ),
    "dpwg.privacy": (
        *("accounting", "audit", "curves", "mechanism", "lora", "rules", "supported"),
        *("clipping", "card"),
    ),
    "dpwg.training": (
        *("memory", "progress", "ranks", "state", "weights", "descent", "mapped", "examples"),
        *("tokenizer", "superresolution", "pretrain", "matcher", "finetune", "audit", "rehearsal"),
        *("cost", "sources", "recipe"),
    ),
    "dpwg.ui": (
        *(
            "families",
            "limits",
            "style",
            "pictures",
            "results",
            "figures",
            "fresh",
            "uploads",
            "sharing",
        ),
        *("pipelines", "runs", "shown", "own", "promises", "plans", "rows"),
        *("generate", "compare", "bands", "privacy", "nearest", "attack", "train", "about"),
        "demo",
    ),
    "dpwg.cli": ("console", "options", "data", "family", "train", "finetune", "use", "measure"),
}
HEAVY = {"gradio", "diffusers", "transformers", "torch", "opacus", "matplotlib", "resvg_py"}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str) -> Iterator[str]:
    """Every module of dpwg that `name` imports, wherever in the file."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "dpwg")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dpwg":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else str(node.module)


def room(name: str) -> str:
    """The entry of LEVELS that a module belongs to."""
    while name not in LEVELS:
        name = name.rpartition(".")[0]
    return name


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_a_level(name: str) -> None:
    assert name == "dpwg" or room(name) != "dpwg", f"give {name} a level in this table"


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_downward(name: str) -> None:
    for other in imports(name):
        if room(other) == room(name):
            continue
        assert LEVELS[room(other)] < LEVELS[room(name)], f"{name} imports {other}"


def test_every_module_of_a_package_has_a_place_in_it() -> None:
    listed = {f"{package}.{own}" for package, order in INSIDE.items() for own in order}
    assert listed == {name for name in MODULES if name.rpartition(".")[0] in INSIDE}


@pytest.mark.parametrize("package", INSIDE)
def test_imports_within_a_package_go_downward(package: str) -> None:
    order = [f"{package}.{own}" for own in INSIDE[package]]
    for place, name in enumerate(order):
        above = {other for other in imports(name) if other in MODULES and room(other) == package}
        assert above <= set(order[:place]), name


def test_no_module_reaches_itself() -> None:
    graph = {name: set(imports(name)) - {name} for name in MODULES}

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        for other in graph[name]:
            visit(other, (*path, name))

    for name in graph:
        visit(name, ())


def test_imports_are_absolute() -> None:
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.level), path


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("dpwg.privacy")])
def test_privacy_could_be_lifted_out(name: str) -> None:
    assert all(other.startswith("dpwg.privacy") for other in imports(name))


def loaded(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    return set(ran.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded("import dpwg") & HEAVY


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    assert not loaded("import dpwg.cli") & HEAVY


def test_accounting_and_cards_load_no_torch() -> None:
    names = "dpwg.privacy.accounting, dpwg.privacy.audit, dpwg.privacy.card"
    assert "torch" not in loaded(f"import {names}")


def test_the_pipeline_loads_no_user_interface_and_no_training_library() -> None:
    found = loaded("import dpwg.pipeline, dpwg.upsample as u; u.all_upsamplers()")
    assert not found & {"gradio", "diffusers", "transformers", "opacus", "dpwg.training.finetune"}


def test_library_code_does_not_print() -> None:
    speakers = {"dpwg.cli", "dpwg.cli.console", "dpwg.launch"}
    for name, path in MODULES.items():
        if name in speakers:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            prints = isinstance(node, ast.Call) and getattr(node.func, "id", None) == "print"
            assert not prints, f"{name} line {node.lineno} prints"
