"""Two data sets beside each other: what the pages show of each, and what they never show."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from urllib.parse import parse_qsl

import gradio as gr
import numpy as np
import pytest
from cards import recarded

from dpwg.data.records import MAX_CAPTION_CHARACTERS
from dpwg.release.folder import find_checkpoint, load_card
from dpwg.release.shared import RERANKER
from dpwg.ui import compare, families, generate
from dpwg.ui.attack import attack, attack_live
from dpwg.ui.demo import build_demo
from dpwg.ui.drawing import Drawing, from_query, to_query
from dpwg.ui.families import (
    FACES,
    carried,
    example_captions,
    families_of,
    first_caption,
    known,
    siblings,
    suited_upsampler,
    usual_checkpoint,
    variations,
)
from dpwg.ui.figures import quality_figure
from dpwg.ui.limits import MAX_CAPTIONS
from dpwg.ui.nearest import DATA, nearest, refusal
from dpwg.ui.own import Shown, describe_checkpoint, refitted
from dpwg.ui.plans import ordered, public_names
from dpwg.ui.results import Measure, Point
from dpwg.upsampling.upsamplers import DEFAULT_UPSAMPLER

CELEBA = "celeba"
OF_FACES = ["faces/public", "faces/eps-1", "faces/eps-inf"]
OF_CELEBA = ["celeba/public", "celeba/eps-1", "celeba/eps-inf", "celeba/person-eps-10"]


@pytest.fixture(scope="module")
def both(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny faces, and the same as if of CelebA, which ask for an upsampler of their own. Their
    cards claim records of faces, as an attacker's would.
    """
    folder: Path = tmp_path_factory.mktemp("both")
    shutil.copytree(root, folder, dirs_exist_ok=True)
    shutil.copytree(root / "faces", folder / "celeba")
    shutil.copytree(root / "faces" / "eps-1", folder / "celeba" / "person-eps-10")
    for name in OF_CELEBA:
        config = folder / name / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"upsampler": "bicubic"}))
        if not name.endswith("public"):
            recarded(folder / name, dataset=DATA)
    return folder


@pytest.fixture(autouse=True)
def _checkpoints(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(both))


@pytest.mark.parametrize(
    ("names", "usual"),
    [
        ("public eps-1 eps-3 eps-10 eps-inf", "eps-10"),
        ("person-eps-10 public eps-1 eps-3 eps-10 eps-inf person-eps-inf", "eps-10"),
        ("person-eps-10 public eps-1 eps-3 eps-inf", "eps-3"),
        ("public eps-0.5 eps-8 eps-12", "eps-8"),
        ("public eps-20 eps-50 eps-inf", "eps-20"),
        ("public person-eps-10 eps-inf", "person-eps-10"),
        ("public mine eps-inf", "mine"),
        ("public eps-inf", "public"),
        ("eps-inf", "eps-inf"),
        ("steps-10 public", "steps-10"),
    ],
)
def test_a_page_begins_with_a_bound_for_images(names: str, usual: str) -> None:
    own = [f"set/{name}" for name in names.split()]
    assert usual_checkpoint(own) == usual_checkpoint(own[::-1]) == f"set/{usual}"
    assert usual_checkpoint([*own, "zoo/eps-10"]) == f"set/{usual}"
    assert usual_checkpoint([*own, "faces/public"]) == "faces/public"


def test_families_are_told_by_their_names() -> None:
    names = ["celeba/eps-1", "faces/public", "mine", "a/b/eps-3"]
    assert families_of(names) == ["faces", "", "a/b", "celeba"]
    assert siblings(FACES) == OF_FACES
    assert siblings(CELEBA) == OF_CELEBA
    titles = {known(family).title for family in families_of(names)}
    assert len(titles) == 4
    assert all(titles)
    assert known("a/b").title == "a/b"
    rival = known("celeba/dp-ldm")
    assert rival.title == f"{known('celeba').title}, by DP-LDM"
    assert rival.hidden == known("celeba").hidden
    assert rival.examples == known("celeba").examples


def test_examples_are_of_their_family() -> None:
    faces, celeba = example_captions(FACES), example_captions(CELEBA)
    assert len(celeba) == 8
    assert not set(faces) & set(celeba)
    assert example_captions("mine") == []
    assert first_caption("mine") == families.placeholder("mine") == variations("mine") == ""
    for family in (FACES, CELEBA):
        lines = [*example_captions(family), *variations(family).splitlines()]
        assert all(0 < len(line) <= MAX_CAPTION_CHARACTERS for line in lines)
        assert 1 < len(variations(family).splitlines()) <= MAX_CAPTIONS


def test_a_surprise_has_the_wording_of_its_family() -> None:
    drawn = {family: {generate.surprise(family)[0] for _ in range(9)} for family in (FACES, CELEBA)}
    assert all(len(captions) > 1 for captions in drawn.values())
    assert not drawn[FACES] & drawn[CELEBA]
    assert generate.surprise("mine")[0] == ""


def test_the_choice_of_a_family_is_followed_by_all_that_depends_on_it() -> None:
    for family, names, upsampler in (
        (CELEBA, OF_CELEBA, "bicubic"),
        (FACES, OF_FACES, DEFAULT_UPSAMPLER),
    ):
        checkpoint, examples, _, suited, _ = generate.switched(family)
        assert [value for _, value in checkpoint.choices] == names
        assert checkpoint.value == usual_checkpoint(names)
        assert examples.raw_samples == [[line] for line in example_captions(family)]
        assert suited == upsampler


def test_an_upsampler_follows_unless_it_was_chosen_by_hand(both: Path, tmp_path: Path) -> None:
    assert suited_upsampler("celeba/eps-1") == "bicubic"
    assert suited_upsampler("faces/eps-1") == suited_upsampler("nowhere") == DEFAULT_UPSAMPLER
    shutil.copytree(both / "celeba" / "eps-1", tmp_path / "odd")
    for odd in ("magic", 7, None):
        config = tmp_path / "odd" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"upsampler": odd}))
        assert suited_upsampler(tmp_path / "odd") == DEFAULT_UPSAMPLER
    assert refitted(DEFAULT_UPSAMPLER, "celeba/eps-1") == "bicubic"
    assert refitted("realesrgan-video", "celeba/eps-1") == "realesrgan-video"


def test_compare_follows_and_keeps_what_was_typed() -> None:
    found = compare.switched(CELEBA, first_caption(FACES), "my own\nlines")
    caption, upsampler, picked, coarse, images, captions, checkpoint, same = found
    assert (caption, captions) == (first_caption(CELEBA), "my own\nlines")
    assert upsampler == same == "bicubic"
    assert coarse.columns == images.columns == len(OF_CELEBA)
    for radio in (picked, checkpoint):
        assert [value for _, value in radio.choices] == OF_CELEBA
        assert radio.value == "celeba/eps-1"
    assert carried(variations(CELEBA), FACES, variations) == variations(FACES)
    assert carried("", "mine", first_caption) == ""


def test_a_figure_has_one_family_and_a_line_for_images(monkeypatch: pytest.MonkeyPatch) -> None:
    epsilons = {"public": 0.0, "eps-1": 1.0, "eps-10": 10.0, "person-eps-10": 10.0, "eps-inf": None}
    points = [
        Point(f"{family}/{last}", epsilon, float(place))
        for family in (FACES, CELEBA)
        for place, (last, epsilon) in enumerate(epsilons.items())
    ]
    measure = Measure("loss", "nats", tuple(points), "measured")
    monkeypatch.setattr("dpwg.ui.compare.measures", lambda: [measure])
    figure, told = compare.mark("celeba/person-eps-10")
    assert told.startswith("**celeba/person-eps-10**: 3.000 nats")
    dotted, bounded, *dots = figure.axes[0].get_lines()
    np.testing.assert_array_equal(dotted.get_ydata(), [0, 1, 2, 4])
    np.testing.assert_array_equal(bounded.get_xdata(), [1, 10])
    assert len(dots) == len(epsilons)
    assert len(figure.axes[0].get_xticklabels()) == len(epsilons) - 1
    assert quality_figure(measure, None) is not None
    assert compare.mark("mine/eps-1")[0] is None


@pytest.mark.parametrize("name", OF_CELEBA)
def test_records_of_real_people_are_never_shown(name: str) -> None:
    """Not even where the card claims that they are drawn faces."""
    picture = np.zeros((1, 32, 32, 3), np.uint8)
    reason = known(CELEBA).hidden
    private = "photographs of real people"
    for shown in (None, Shown(name, picture, picture, "drawn")):
        with pytest.raises(gr.Error, match=reason):
            next(nearest(shown, name if shown is None else "faces/eps-1", 50))
    if not name.endswith("public"):
        assert private in attack(name).told
        assert attack(name)[1:] == (None, None, None, "")
        with pytest.raises(gr.Error, match=private):
            attack_live(name, 50, 0)


def test_records_of_an_unknown_family_are_never_shown() -> None:
    assert known("mine").hidden
    card = load_card(find_checkpoint("celeba/eps-1"))
    assert refusal("faces/eps-1", card) == ""
    assert "may have been" in refusal("mine/eps-1", card)


@pytest.mark.parametrize(
    ("column", "word"),
    [("'person'", "a person"), ("'artist'", "an artist"), ("'Patient no. 2'", "a group")],
)
def test_a_promise_to_a_group_is_told_in_its_columns_word(
    both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str, word: str
) -> None:
    plain, _ = describe_checkpoint("celeba/eps-1")
    assert "a training record" in plain
    assert " per " not in plain
    shutil.copytree(both / "celeba" / "eps-1", tmp_path / "own" / "eps-1")
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(tmp_path))
    unit = f"One group: all images with the same {column}, with their captions."
    recarded(tmp_path / "own" / "eps-1", unit=unit)
    told, _ = describe_checkpoint("own/eps-1")
    assert f" per {word.split()[1]} at δ" in told
    assert f"recognise {word} in the training set" in told
    assert "record" not in told


def test_candidates_are_offered_where_a_reranker_chooses(
    both: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [both / RERANKER]
    monkeypatch.setattr(families, "find_rerankers", lambda: found)
    query = {"seed": "1", "checkpoint": "celeba/eps-1", "candidates": "3"}
    assert generate.switched(FACES)[-1].visible
    assert not generate.switched(CELEBA)[-1].visible
    *_, candidates = generate.on_load(query)
    assert (candidates.value, candidates.visible) == (3, False)
    found.append(both / CELEBA / RERANKER)
    assert generate.on_load(query)[-1].visible
    found.clear()
    assert not generate.switched(FACES)[-1].visible


def test_a_link_opens_its_family() -> None:
    drawing = Drawing("celeba/person-eps-10", "somebody", 7, upsampler="bicubic")
    query = dict(parse_qsl(to_query(drawing)[1:]))
    assert query.keys() == {"caption", "seed", "checkpoint"}
    assert from_query(query) == drawing
    other = Drawing("celeba/eps-1", "somebody", 7, upsampler=DEFAULT_UPSAMPLER)
    assert from_query(dict(parse_qsl(to_query(other)[1:]))) == other
    asked, family, examples, checkpoint, *rest = generate.on_load(query)
    assert (asked, family) == (True, CELEBA)
    assert examples.raw_samples == [[line] for line in example_captions(CELEBA)]
    assert [value for _, value in checkpoint.choices] == OF_CELEBA
    assert checkpoint.value == "celeba/person-eps-10"
    assert (rest[0].value, rest[1]) == ("somebody", 7)


def test_a_page_without_a_link_or_with_a_bad_one_has_the_first_family() -> None:
    found = [generate.on_load({})]
    with pytest.warns(UserWarning, match="celeba/nothing"):
        found += [generate.on_load({"seed": "1", "checkpoint": "celeba/nothing"})]
    for asked, family, _, checkpoint, *_ in found:
        assert (asked, family) == (False, FACES)
        assert [value for _, value in checkpoint.choices] == OF_FACES


def test_programs_may_name_every_checkpoint() -> None:
    """Where a page has narrowed the choice to a family, a program that asks has not."""
    demo = build_demo()
    for block in demo.fns.values():
        if block.api_name in ("generate", "compare_captions", "mark", "describe_checkpoint"):
            (radio,) = [i for i in block.inputs if isinstance(i, gr.Radio) and "/" in i.value]
            assert {value for _, value in radio.choices} == {*OF_FACES, *OF_CELEBA}


def test_the_choice_of_a_family_is_hidden_where_there_is_one(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown() -> set[object]:
        return {b.visible for b in build_demo().blocks.values() if b.elem_id in ids}

    ids = {"family", "compared-family"}
    assert shown() == {True}
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(root))
    assert shown() == {False}


def test_training_may_begin_from_either_public_checkpoint() -> None:
    bases = public_names([*OF_FACES, *OF_CELEBA])
    assert bases == ["faces/public", "celeba/public"]
    assert [ordered(100, base, 3.0, 3, None, None).base for base in bases] == bases
