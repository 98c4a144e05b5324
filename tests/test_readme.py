"""README and docs: tables are those of the cards and result files, commands exist, links lead."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from readme import PAGES, TABLES, filled

from dpwg.cli import VERBS, parsed

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
TEXTS = {path: path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}
README = TEXTS[ROOT / "README.md"]


def made(table: str, results: Path) -> str:
    return filled(f"<!-- begin {table} -->\n<!-- end {table} -->", results)


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_are_those_of_the_cards_and_result_files(page: str) -> None:
    assert filled(TEXTS[ROOT / page]) == TEXTS[ROOT / page]


def test_every_table_stands_somewhere() -> None:
    shown = set(re.findall(r"<!-- begin (\S+) -->", "".join(TEXTS.values())))
    files = {name: pattern.split() for name, (pattern, _) in TABLES.items()}
    results = ROOT / "docs" / "results"
    assert shown == {n for n, some in files.items() if any(any(results.glob(p)) for p in some)}


def test_response_times_stand_beside_their_bars(tmp_path: Path) -> None:
    facts = {"seconds": {"page ready": 4.44, "bands": 1.0}, "bars": {"page ready": 8, "bands": 2}}
    facts["first_load"] = {"bands": 3.21}
    (tmp_path / "studio.json").write_text(json.dumps(facts))
    text = made("studio", tmp_path)
    assert "| page ready |  | 4.4 s | 8 s |\n| bands | 3.2 s | 1.0 s | 2 s |\n" in text


def test_each_measured_machine_has_a_column(tmp_path: Path) -> None:
    for number, precision in enumerate(("float32", "bfloat16")):
        facts = json.loads((RESULTS / "bench-bfloat16.json").read_text())
        facts["settings"]["precision"] = precision
        facts["private_over_nonprivate"] = 1.25 + number
        (tmp_path / f"bench-{number}.json").write_text(json.dumps(facts))
    text = made("bench", tmp_path)
    assert "| measured | float32 | bfloat16 |\n" in text
    assert "| private step over non-private, all parameters | 1.25 | 2.25 |\n" in text


def test_a_checkpoint_that_was_not_measured_enters_no_table(tmp_path: Path) -> None:
    """Such as a user's own, which lies beside the shipped ones."""
    facts = json.loads((RESULTS / "held-out.json").read_text())
    facts["nats_per_code"] = facts["nats_per_code"][:2]
    (tmp_path / "held-out.json").write_text(json.dumps(facts))
    for table in ("checkpoints", "promises", "quality"):
        assert made(table, tmp_path).count("| `") == 2


def test_every_command_is_understood() -> None:
    script = re.sub(r"\$\{[^}]*\}", "1", "\n".join(TEXTS.values()).replace("\\\n", " "))
    commands = re.findall(r"^ *(?:python|torchrun \S+) -m dpwg ([^#&;\n]*)", script, re.M)
    commands += re.findall(r"`python -m dpwg ([a-z]+ --[^`…]*)`", script.replace("\n", " "))
    assert len(commands) > 20
    for command in commands:
        name, *words = shlex.split(command)
        if name in VERBS and words[:1] != ["check"]:
            parsed(name, words)
        else:
            assert command.strip() in ("--help", "VERB --help") or words[0] == "check"


def test_every_link_leads_to_a_file() -> None:
    for page, text in TEXTS.items():
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (page.parent / target).exists(), (page.name, target)


def test_the_map_names_functions_that_are_there() -> None:
    named = re.findall(r"`(\w+/\w+\.py)::([\w.]+)`", TEXTS[ROOT / "docs" / "architecture.md"])
    assert len(named) > 25
    for path, function in named:
        code = (ROOT / "dpwg" / path).read_text()
        assert all(re.search(rf"(def|class) {own}\b", code) for own in function.split(".")), (
            function
        )


def test_the_readme_is_short_and_that_of_a_space_with_the_pinned_gradio() -> None:
    assert len(README.encode()) < 8_000
    front = yaml.safe_load(README.split("---")[1])
    assert front["sdk"] == "gradio"
    assert f"gradio=={front['sdk_version']}" in (ROOT / "requirements.txt").read_text()
    assert (ROOT / front["app_file"]).exists()


def test_requirements_pin_what_the_package_declares() -> None:
    """So that a fresh environment of either has what the other promises."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["app"]]
    names = {re.split(r"[^\w-]", line)[0].lower().replace("_", "-") for line in declared}
    lines = (ROOT / "requirements.txt").read_text().lower().replace("_", "-").splitlines()
    pinned = {line.partition("==")[0] for line in lines if "==" in line}
    assert names == pinned
