"""The Compare tab's handlers, on tiny releases and a made-up result file."""

import json
import shutil

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from dpwg.method.pipeline import MAX_SEED, DPWaveletPipeline
from dpwg.privacy.accounting import epsilon_text
from dpwg.release.folder import find_checkpoint, load_card
from dpwg.ui import results
from dpwg.ui.compare import compare_captions, compare_checkpoints, mark
from dpwg.ui.families import siblings
from dpwg.ui.limits import MAX_CAPTIONS

NAMES = ["faces/public", "faces/eps-1", "faces/eps-inf"]


@pytest.fixture(autouse=True)
def _checkpoints(root, monkeypatch):
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(root))


def test_checkpoints_stream_from_left_to_right_and_end_with_all():
    counts, last = [], {}
    for rows in compare_checkpoints("faces", " A person ", 7, "bicubic"):
        counts.append((len(rows.coarse), len(rows.images)))
        last = {label: np.asarray(Image.open(file)) for file, label in rows.images}
    assert counts == sorted(counts)
    assert counts[:5] == [(0, 0), (1, 0), (1, 0), (1, 0), (1, 1)]
    epsilon = load_card(find_checkpoint("faces/eps-1")).epsilon
    assert list(last) == ["public, ε = 0", f"ε = {epsilon_text(epsilon)}", "no privacy"]
    assert rows.status.startswith("seed 7 for all · drawn in ")
    alone = DPWaveletPipeline.from_pretrained("faces/eps-1")(
        "A person", seed=7, upsampler="bicubic"
    )
    np.testing.assert_array_equal(last[f"ε = {epsilon_text(epsilon)}"], alone.image[0])


def test_a_damaged_release_is_left_out_and_the_others_are_drawn(root, tmp_path, monkeypatch):
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(tmp_path))
    next((tmp_path / "faces" / "eps-1").glob("*.safetensors")).write_bytes(b"cut off")
    for rows in compare_checkpoints("faces", "a", 7, "bicubic"):
        drawn = [label for _, label in rows.images]
    assert drawn == ["public, ε = 0", "no privacy"]
    assert "faces/eps-1" in rows.status


def test_captions_share_a_seed_and_are_numbered():
    frames = compare_captions("faces/eps-1", "one\n\n  two \r\n", 3, "bicubic")
    sizes = []
    for rows in frames:
        sizes.append(len(rows.images))
        pictures = [np.asarray(Image.open(file)) for file, _ in rows.images]
    assert sizes == [0, 0, 0, 2]
    assert [label for _, label in rows.images] == ["line 1", "line 2"]
    assert [picture.shape for picture in pictures] == [(128, 128, 3)] * 2
    alone = DPWaveletPipeline.from_pretrained("faces/eps-1")("two", seed=3, upsampler="bicubic")
    np.testing.assert_array_equal(pictures[1], alone.image[0])


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: compare_checkpoints("nobody", "a", 0, "bicubic"), "no checkpoint for 'nobody'"),
        (lambda: compare_checkpoints("faces", "a" * 5_000, 0, "bicubic"), "found 5000"),
        (lambda: compare_checkpoints("faces", "a", -1, "bicubic"), "seed=-1"),
        (lambda: compare_checkpoints("faces", "a", MAX_SEED + 1, "bicubic"), "seed="),
        (lambda: compare_checkpoints("faces", "a", 0, "magic"), "magic"),
        (lambda: compare_captions("faces/eps-1", " \n ", 0, "bicubic"), "found 0"),
        (
            lambda: compare_captions("faces/eps-1", "a\n" * (MAX_CAPTIONS + 1), 0, "bicubic"),
            f"found {MAX_CAPTIONS + 1}",
        ),
        (lambda: compare_captions("/etc", "a", 0, "bicubic"), "checkpoint='/etc'"),
    ],
)
def test_bad_input_is_an_error_in_words(ask, message):
    with pytest.raises(gr.Error, match=message):
        list(ask())


def test_the_curve_shows_what_the_result_file_says(tmp_path, monkeypatch):
    rows = [
        {"name": name, "epsilon": epsilon, "loss": loss}
        for name, epsilon, loss in zip(NAMES, (0.0, 1.0, None), (3.0, 2.5, 2.0), strict=True)
    ]
    facts = {"data": "some", "records": 1234, "nats_per_code": rows}
    (tmp_path / "held-out.json").write_text(json.dumps(facts))
    rows = [
        {"name": n, "epsilon": e, "captions": 40, "all_parts": 0.25, "candidates": candidates}
        for n, e, candidates in (
            ("faces/public", 0.0, 1),
            ("faces/eps-1", 1.0, 6),
        )
    ]
    colours = {"data": "some", "own_codes": {"all_parts": 0.975}, "checkpoints": rows}
    (tmp_path / "colours.json").write_text(json.dumps(colours))
    measure, second = results.measures(tmp_path)
    assert [tuple(point) for point in measure.points] == [
        *(("faces/public", 0.0, 3.0), ("faces/eps-1", 1.0, 2.5), ("faces/eps-inf", None, 2.0))
    ]
    monkeypatch.setattr("dpwg.ui.compare.measures", lambda: [measure, second])
    figure, told = mark("faces/eps-1")
    assert told.startswith("**faces/eps-1**: 2.500 nats a code. Held-out")
    assert "1,234 records of `some`" in told
    ticks = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert ticks == ["public\nε = 0", "1", "no\nprivacy"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["3.000", "2.500", "2.000"]
    assert mark("faces/eps-2")[0] is not None
    assert mark("elsewhere/eps-2")[0] is None
    figure, told = mark("faces/eps-1", second.title)
    assert told.startswith("**faces/eps-1**: 25.000 % of pictures. Pictures of 40 captions")
    assert "own codes reach 97.5 %; a reranker chose each from 1 or 6 candidates" in told
    assert figure.axes[0].get_ylabel() == "all colours right, % of pictures"
    monkeypatch.setattr("dpwg.ui.compare.measures", list)
    assert mark("faces/eps-1")[0] is None
    assert results.measures(tmp_path / "nowhere") == []


def test_siblings_are_ordered_by_epsilon():
    assert siblings("faces") == NAMES
    assert siblings("scenes") == []
