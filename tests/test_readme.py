"""The README: its tables are those of the cards and result files, its commands exist."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from readme import RESULTS, update

from dpwg.cli import parsed

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_tables_are_those_of_the_cards_and_result_files(tmp_path):
    shutil.copy(ROOT / "README.md", tmp_path)
    shutil.copytree(ROOT / RESULTS, tmp_path / RESULTS)
    assert update(tmp_path / "README.md") == README


def test_response_times_stand_beside_their_bars(tmp_path):
    (tmp_path / RESULTS).mkdir(parents=True)
    facts = {"seconds": {"page ready": 4.44, "bands": 1.0}, "bars": {"page ready": 8, "bands": 2}}
    facts["first_load"] = {"bands": 3.21}
    (tmp_path / RESULTS / "studio.json").write_text(json.dumps(facts))
    (tmp_path / "README.md").write_text("<!-- begin studio -->\n<!-- end studio -->")
    text = update(tmp_path / "README.md")
    assert "| page ready |  | 4.4 s | 8 s |\n| bands | 3.2 s | 1.0 s | 2 s |\n" in text


def test_each_measured_machine_has_a_column(tmp_path):
    """In the order of the files' names; every ratio stands in the table as the file has it."""
    (tmp_path / RESULTS).mkdir(parents=True)
    for number, (end, precision) in enumerate((("a", "float32"), ("b", "bfloat16"))):
        facts = json.loads((ROOT / RESULTS / "bench-bfloat16.json").read_text())
        facts["settings"]["precision"] = precision
        facts["private_over_nonprivate"] = 1.25 + number
        facts["examples_per_second"]["private_lora"] = 40.4 + number
        (tmp_path / RESULTS / f"bench-{end}.json").write_text(json.dumps(facts))
    (tmp_path / "README.md").write_text("<!-- begin bench -->\n<!-- end bench -->")
    text = update(tmp_path / "README.md")
    assert "| measured | float32 | bfloat16 |\n" in text
    assert "| private step over non-private, all parameters | 1.25 | 2.25 |\n" in text
    assert "| examples a second, private LoRA | 40 | 41 |\n" in text
    shutil.copy(tmp_path / RESULTS / "bench-a.json", tmp_path / RESULTS / "bench-c.json")
    with pytest.raises(ValueError, match="of each precision"):
        update(tmp_path / "README.md")


def test_an_unknown_table_is_refused_by_name(tmp_path):
    (tmp_path / "README.md").write_text("<!-- begin nonsense -->\n<!-- end nonsense -->")
    with pytest.raises(ValueError, match="nonsense"):
        update(tmp_path / "README.md")


def test_every_command_is_understood():
    script = re.sub(r"\$\{[^}]*\}", "1", README.replace("\\\n", " "))
    commands = re.findall(
        r"^\s*(?:python|torchrun \S+) -m dpwg ([^#&;\n]*)", script, flags=re.MULTILINE
    )
    assert len(commands) > 8
    for command in commands:
        name, *words = shlex.split(command)
        parsed(*(("check", words[1:]) if words[:1] == ["check"] else (name, words)))


def test_the_front_matter_is_that_of_a_space_with_the_pinned_gradio():
    front = yaml.safe_load(README.split("---")[1])
    requirements = (ROOT / "requirements.txt").read_text()
    assert front["sdk"] == "gradio"
    assert f"gradio=={front['sdk_version']}" in requirements
    assert (ROOT / front["app_file"]).exists()
