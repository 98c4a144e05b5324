"""The app: its handlers as plain functions, then the page in a browser."""

import json
import re
import shutil
import zipfile
from pathlib import Path
from urllib.parse import parse_qsl

import gradio as gr
import numpy as np
import pytest
from app_server import open_tab, press, visiting
from PIL import Image

from dpwg.data.records import MAX_CAPTION_CHARACTERS
from dpwg.method.pipeline import MAX_SEED
from dpwg.privacy.accounting import epsilon_text
from dpwg.privacy.curves import explain
from dpwg.release.folder import find_checkpoint, load_card
from dpwg.ui.demo import build_demo
from dpwg.ui.drawing import Drawing, from_query, generate, swiped, to_query
from dpwg.ui.generate import on_load, surprise
from dpwg.ui.own import YOURS, describe_checkpoint
from dpwg.ui.parts import random_seed

CAPTION = "A person smiling, with short red hair"
INPUTS = {
    "checkpoint": "faces/eps-1",
    "caption": CAPTION,
    "seed": 7,
    "count": 1,
    "guidance": 2.0,
    "temperature": 1.0,
    "upsampler": "bicubic",
}


@pytest.fixture(autouse=True)
def _checkpoints(root, monkeypatch):
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(root))


def test_checkpoint_is_described_by_its_own_card():
    card = load_card(find_checkpoint("faces/eps-1"))
    promise, whole = describe_checkpoint("faces/eps-1")
    assert f"ε = {epsilon_text(card.epsilon)} at δ = 1e-06" in promise
    assert explain(card.ledger) in promise
    assert whole == card.to_markdown()
    told = {describe_checkpoint(f"faces/{name}")[0] for name in ("public", "eps-1", "eps-inf")}
    assert len(told) == 3
    assert not any(" at δ" in promise for promise in told - {describe_checkpoint("faces/eps-1")[0]})


def test_false_card_is_refused_in_words(root, tmp_path, monkeypatch):
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(tmp_path))
    path = tmp_path / "faces" / "eps-1" / "privacy_card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"epsilon": 0.1}))
    for ask in (lambda: describe_checkpoint("faces/eps-1"), lambda: next(generate(**INPUTS))):
        with pytest.raises(gr.Error, match=r"epsilon=0\.1"):
            ask()


def test_scales_stream_in_order_and_the_picture_follows():
    frames, pictures = [], []
    for frame in generate(**INPUTS):
        frames.append(frame)
        pictures.append([np.asarray(Image.open(file)) for file, _ in frame.coarse])
    epsilon = epsilon_text(load_card(find_checkpoint("faces/eps-1")).epsilon)
    for frame, (coarse,), size in zip(frames, pictures, (8, 16, 32, 32), strict=True):
        assert f"{size}×{size}" in frame.coarse_title
        assert f"private model (ε = {epsilon})" in frame.coarse_title
        side = 512 // size
        assert (coarse.shape, coarse.dtype) == ((512, 512, 3), np.uint8)
        blocks = coarse.reshape(size, side, size, side, 3)
        assert (blocks == blocks[:, :1, :, :1]).all()
    assert [bool(frame.images) for frame in frames] == [False, False, False, True]
    assert len({frame.status for frame in frames}) == 4
    last = frames[-1]
    assert (last.shown.coarse.shape, last.shown.image.shape) == ((1, 32, 32, 3), (1, 128, 128, 3))
    for picture, other in zip(last.swipe, swiped(last.shown, 0), strict=True):
        np.testing.assert_array_equal(picture, other)
        assert picture.shape == (512, 512, 3)
    np.testing.assert_array_equal(last.swipe[0], pictures[-1][0])
    assert swiped(last.shown, 1) is swiped(None, 0) is None
    assert "128×128" in last.image_title
    assert all(part in last.status for part in ("seed 7", "tokens", "upsampling", "total"))
    assert all(part in last.authors for part in (epsilon, "32×32", "bicubic"))


def test_files_hold_the_pictures_and_the_facts():
    frames = generate(**INPUTS | {"count": 2, "caption": "  A person \ud800 "})
    last = next(frame for frame in frames if frame.files)
    assert [label for _, label in last.images] == ["seed 7", "seed 8"]
    files = {Path(file).name: Path(file) for file in last.files}
    assert files.keys() == {
        *("seed-7-coarse.png", "seed-7.png", "seed-8-coarse.png", "seed-8.png", "result.json")
    }
    assert Image.open(files["seed-8-coarse.png"]).size == (32, 32)
    np.testing.assert_array_equal(Image.open(files["seed-8.png"]), Image.open(last.images[1][0]))
    facts = json.loads(files["result.json"].read_text())
    assert facts["checkpoint"] == "faces/eps-1"
    assert (facts["captions"], facts["seeds"]) == (["A person \ud800"] * 2, [7, 8])
    assert facts["epsilon"] == load_card(find_checkpoint("faces/eps-1")).epsilon
    frames.close()
    assert not files["result.json"].exists()


def test_who_leaves_ends_the_work(monkeypatch):
    frames = generate(**INPUTS)
    folder = Path(next(frames).coarse[0][0]).parent
    frames.close()
    assert not folder.exists()


def test_no_caption_is_unconditional_and_said_so():
    *_, last = generate(**INPUTS | {"caption": " \n", "checkpoint": "faces/public"})
    assert last.status.startswith("no caption · seed 7")
    assert "public model (ε = 0)" in last.coarse_title


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"checkpoint": "faces/eps-2"}, "faces/eps-2"),
        ({"checkpoint": "../checkpoints/faces/eps-1"}, "checkpoint="),
        ({"checkpoint": YOURS}, "no model of yours"),
        ({"caption": "x" * (MAX_CAPTION_CHARACTERS + 1)}, f"{MAX_CAPTION_CHARACTERS} characters"),
        ({"seed": None}, "seed=None"),
        ({"seed": float("nan")}, "seed=nan"),
        ({"seed": 0.5}, r"seed=0\.5"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": MAX_SEED, "count": 2}, "2 seeds"),
        ({"count": 5}, "count=5"),
        ({"guidance": 50.0}, "guidance"),
        ({"upsampler": "magic"}, "magic"),
    ],
)
def test_bad_input_is_an_error_in_words(change, named):
    with pytest.raises(gr.Error, match=named):
        next(generate(**INPUTS | change))


def test_numbers_of_every_kind_are_seeds():
    assert Drawing("faces/eps-1", "", np.int64(3), np.float64(2)).seeds == (3, 4)


def test_a_surprise_is_a_caption_that_can_be_drawn():
    captions = {surprise("faces")[0] for _ in range(5)}
    assert len(captions) == 5
    assert all(0 < len(caption) <= MAX_CAPTION_CHARACTERS for caption in captions)
    assert all(0 <= random_seed() < 1_000_000 for _ in range(100))


@pytest.mark.parametrize(
    ("drawing", "told"),
    [
        (Drawing("faces/eps-1", "A person, 50 % & more? (ünïcode 🎈)", 7), set()),
        (
            Drawing("faces/public", "", 0, 3, 1.0, 0.25, "bicubic"),
            {"count", "guidance", "temperature", "upsampler"},
        ),
    ],
)
def test_a_link_opens_the_same_and_leaves_out_what_is_usual(drawing, told):
    query = dict(parse_qsl(to_query(drawing)[1:], keep_blank_values=True))
    assert query.keys() == {"caption", "seed", "checkpoint"} | told
    assert from_query(query) == drawing


def test_an_address_that_asks_for_nothing_is_no_link():
    assert from_query({"__theme": "dark"}) is None
    assert from_query({"caption": "hi"}) == Drawing("faces/eps-1", "hi", 0)


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({"caption": "x" * 5_000}, "5000"),
        ({"seed": "NaN"}, "seed=nan"),
        ({"seed": "seven"}, "seven"),
        ({"seed": "1", "count": "99"}, "count=99"),
        ({"seed": "1", "guidance": "inf"}, "guidance"),
        ({"seed": "1", "checkpoint": "../../etc/passwd"}, "../../etc/passwd"),
        ({"seed": "1", "upsampler": "magic"}, "magic"),
    ],
)
def test_a_bad_link_is_told_and_opens_the_page_as_it_is(query, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        from_query(query)
    with pytest.warns(UserWarning, match=re.escape(named)):
        assert on_load(query)[0] is False


def test_page_names_its_handlers():
    names = {
        block.api_name for block in build_demo().fns.values() if block.api_visibility == "public"
    }
    assert names == {
        *("describe_checkpoint", "random_seed", "surprise", "generate"),
        *("compare_checkpoints", "compare_captions", "mark"),
        *("take_generated", "take_upload", "pyramid", "rebuild", "spectra"),
        *("account", "settings_of", "card", "story"),
        *("attack", "attack_live", "nearest"),
        *("plan", "train", "stop", "draw"),
    }


def test_fields_leave_their_bounds_to_the_handlers():
    """Gradio's own message names neither the field nor the way out."""
    fields = [block for block in build_demo().blocks.values() if isinstance(block, gr.Number)]
    assert len(fields) > 10
    assert {(field.minimum, field.maximum) for field in fields} == {(None, None)}


def test_building_the_page_loads_no_model(monkeypatch):
    def load(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("dpwg.release.hub.load_release", load)
    monkeypatch.setattr("dpwg.release.folder.load_card", load)
    build_demo()


def test_page_without_checkpoints_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(tmp_path))
    texts = [str(getattr(block, "value", "")) for block in build_demo().blocks.values()]
    assert any("python -m dpwg pretrain" in text and str(tmp_path) in text for text in texts)


def test_visitor_types_a_caption_and_sees_pictures(chromium, app):
    with visiting(chromium, app[0], width=390) as page:
        page.get_by_role("button", name="More settings").click()
        page.get_by_label("Upsampler").fill("bicubic")
        page.get_by_role("option", name="bicubic").click()
        page.get_by_text("invents nothing").wait_for()
        page.get_by_label("Caption").fill(CAPTION)
        stop = page.get_by_role("button", name="Stop drawing")
        assert not stop.is_visible()
        page.get_by_role("button", name="Generate").click()
        page.get_by_role("heading", name="Image 128×128").wait_for()
        stop.wait_for(state="hidden")
        page.locator("#swipe img").first.scroll_into_view_if_needed()
        page.wait_for_function(
            "['#coarse img', '#images img', '#swipe img'].every("
            "s => document.querySelector(s).naturalWidth > 0)"
        )
        link = page.get_by_role("link", name="link to this drawing").get_attribute("href")
        assert "upsampler=bicubic" in link
        page.get_by_role("button", name="Files to download").click()
        with page.expect_download() as download:
            page.locator("a[download='result.json']").click()
        assert json.loads(download.value.path().read_text())["caption"] == CAPTION
        for tab, button, seen in (
            ("Generate", None, "#images img"),
            ("Compare", "Compare", "#checkpoints-images img"),
            ("Bands", "Take the generated image", "#rebuilt img"),
            ("Privacy", "Compute", "text=PRV, cross-check"),
            ("Attack", None, "#attack-told >> text=AUC"),
            ("Attack", "Find the nearest records", "#nearest-unseen img"),
            ("Train", None, "#plan"),
            ("About", None, "text=It is synthetic"),
        ):
            open_tab(page, tab)
            if button:
                press(page, button)
            page.locator(seen).first.wait_for()
            assert page.evaluate("document.documentElement.scrollWidth") == 390, tab
        page.goto(app[0] + link)
        page.get_by_text("seed 0 · text").first.wait_for()
        assert page.get_by_label("Caption").first.input_value() == CAPTION


@pytest.mark.slow
def test_programs_train_and_draw_with_what_is_theirs(app, image_folder, tmp_path):
    """What one of them trained is not another's."""
    from gradio_client import Client, handle_file

    visitor, other = Client(app[0], verbose=False), Client(app[0], verbose=False)
    asked = {
        "base": "faces/public",
        "source": "my own pictures",
        "count": 100,
        "files": [handle_file(path) for path in sorted(image_folder.iterdir())],
        "epsilon": 3,
        "steps": 2,
        "batch": 0,
        "delta": 0,
    }
    told, table, *_ = visitor.predict(**asked, api_name="/plan")
    assert "at δ = 1e-05" in told
    assert ["records", "12"] in table["data"]
    for api_name in ("/train", "/stop"):
        with pytest.raises(Exception, match=r"Make a plan|Nothing of yours"):
            other.predict(api_name=api_name)
    status, *_, files, _ = visitor.predict(api_name="/train")
    assert "2 of 2 steps" in status
    with zipfile.ZipFile(files[0]) as archive:
        archive.extractall(tmp_path / "home")
    card = load_card(tmp_path / "home")
    assert (card.records, card.steps) == (12, 2)
    with pytest.raises(Exception, match="There is no result yet"):
        other.predict("A person", 1, api_name="/draw")
    assert "seed 1 for all" in visitor.predict("A person", 1, api_name="/draw")[-1]
    with pytest.raises(Exception, match="is not in the list of choices"):
        other.predict(YOURS, "A person", 1, 1, 1.5, 0.5, "bicubic", api_name="/generate")


@pytest.mark.slow
def test_a_person_trains(chromium, app, image_folder):
    """The model is offered to draw with, to this visitor alone, until another plan is made."""
    with visiting(chromium, app[0]) as page, visiting(chromium, app[0]) as other:
        open_tab(page, "Train")
        page.get_by_label("my own pictures").check()
        files = sorted(image_folder.iterdir())
        page.locator("input[type=file][multiple]").set_input_files(files)
        page.locator(".file-preview .filename").nth(len(files) - 1).wait_for()
        page.get_by_label("Steps").last.fill("2")
        press(page, "Make a plan")
        page.locator("#planned").get_by_text("The noise outweighs").wait_for()
        assert page.get_by_label("yours, ε").count() == 0
        press(page, "Start, or go on")
        page.get_by_text("done. Draw with it below").wait_for()
        open_tab(page, "Generate")
        page.get_by_label("yours, ε").first.check()
        page.get_by_text("at δ = 1e-05").locator("visible=true").first.wait_for()
        press(page, "Generate")
        page.get_by_role("heading", name="Image 128×128").wait_for()
        assert page.get_by_text("link to this drawing").count() == 0
        open_tab(page, "Compare")
        press(page, "Compare")
        page.locator("#checkpoints-images").get_by_text("yours, ε").wait_for()
        assert other.get_by_label("yours, ε").count() == 0
        open_tab(page, "Train")
        page.get_by_label("Steps").last.fill("0")
        press(page, "Make a plan")
        page.get_by_text("Expected steps=0").first.wait_for()
        open_tab(page, "Generate")
        page.get_by_label("yours, ε").first.wait_for(state="detached")
        assert page.get_by_label("faces/eps-10").first.is_checked()
