"""The app: its handlers as plain functions, then the page in a browser."""

import json
import re
import shutil
import zipfile
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import gradio as gr
import numpy as np
import pytest
from app_server import serving
from cards import recarded
from PIL import Image

from dpwg.data.records import MAX_CAPTION_CHARACTERS
from dpwg.method.pipeline import MAX_SEED
from dpwg.privacy.accounting import epsilon_text
from dpwg.privacy.curves import explain
from dpwg.release.folder import find_checkpoint, load_card
from dpwg.ui.demo import build_demo
from dpwg.ui.drawing import generate, swiped
from dpwg.ui.families import example_captions
from dpwg.ui.generate import on_load, surprise
from dpwg.ui.own import YOURS
from dpwg.ui.promises import describe_checkpoint
from dpwg.ui.sharing import Drawing, from_query, to_query
from dpwg.ui.shown import random_seed

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which("chromium")
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
    assert promise == f"**ε = {epsilon_text(card.epsilon)} at δ = 1e-06.** {explain(card.ledger)}"
    assert whole == card.to_markdown()
    assert describe_checkpoint("faces/public")[0].startswith("**Public data only, ε = 0.** This")
    assert describe_checkpoint("faces/eps-inf")[0].startswith("**No privacy.** There is no bound")


def test_false_card_is_refused_in_words(root, tmp_path, monkeypatch):
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(tmp_path))
    path = tmp_path / "faces" / "eps-1" / "privacy_card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"epsilon": 0.1}))
    for ask in (lambda: describe_checkpoint("faces/eps-1"), lambda: next(generate(**INPUTS))):
        with pytest.raises(gr.Error, match=r"epsilon=0\.1, its ledger"):
            ask()


def test_scales_stream_in_order_and_the_picture_follows():
    frames, pictures = [], []
    for frame in generate(**INPUTS):
        frames.append(frame)
        pictures.append([np.asarray(Image.open(file)) for file, _ in frame.coarse])
    epsilon = load_card(find_checkpoint("faces/eps-1")).epsilon
    assert [frame.coarse_title for frame in frames] == [
        f"### Coarse {size}×{size}\n*private model (ε = {epsilon_text(epsilon)})*"
        for size in (8, 16, 32, 32)
    ]
    assert [frame.images is None for frame in frames] == [True, True, True, False]
    assert "Drawing 16×16" in frames[0].status
    assert "Upsampling with bicubic" in frames[2].status
    for frame, (coarse,), size in zip(frames, pictures, (8, 16, 32, 32), strict=True):
        side = 512 // size
        assert (coarse.shape, coarse.dtype) == ((512, 512, 3), np.uint8)
        assert frame.coarse[0][1] is None
        blocks = coarse.reshape(size, side, size, side, 3)
        assert (blocks == blocks[:, :1, :, :1]).all()
    shown = frames[-1].shown
    assert (shown.coarse.shape, shown.image.shape) == ((1, 32, 32, 3), (1, 128, 128, 3))
    for picture, other in zip(frames[-1].swipe, swiped(shown, 0), strict=True):
        np.testing.assert_array_equal(picture, other)
        assert picture.shape == (512, 512, 3)
    np.testing.assert_array_equal(frames[-1].swipe[0], pictures[-1][0])
    assert swiped(shown, 1) is swiped(None, 0) is None
    assert frames[-1].image_title == "### Image 128×128\n*public upsampler*"
    assert frames[-1].status.startswith("seed 7 · text ")
    assert all(part in frames[-1].status for part in ("tokens", "upsampling", "total"))
    assert frames[-1].authors.startswith("The private model")
    assert "at 32×32" in frames[-1].authors
    assert "public upsampler bicubic" in frames[-1].authors


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
    facts, card = (
        json.loads(files["result.json"].read_text()),
        load_card(find_checkpoint("faces/eps-1")),
    )
    assert facts.pop("seconds").keys() == {"text", "tokens", "upsampling", "total"}
    assert facts == {
        "checkpoint": "faces/eps-1",
        "caption": "A person \ud800",
        "captions": ["A person \ud800"] * 2,
        "seed": 7,
        "seeds": [7, 8],
        "candidates": 1,
        "reranker": None,
        "epsilon": card.epsilon,
        "delta": card.delta,
        "coarse_size": 32,
        "image_size": 128,
    }
    frames.close()
    assert not files["result.json"].exists()


def test_no_caption_is_unconditional_and_said_so():
    *_, last = generate(**INPUTS | {"caption": " \n", "checkpoint": "faces/public"})
    assert last.status.startswith("no caption · seed 7")
    assert "public model (ε = 0)" in last.coarse_title


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint": "faces/eps-2"}, "faces/eps-2"),
        ({"checkpoint": "../checkpoints/faces/eps-1"}, "Expected checkpoint="),
        ({"caption": "x" * (MAX_CAPTION_CHARACTERS + 1)}, f"{MAX_CAPTION_CHARACTERS} characters"),
        ({"seed": None}, "Expected seed=None"),
        ({"seed": float("nan")}, "Expected seed=nan"),
        ({"seed": 0.5}, r"Expected seed=0\.5"),
        ({"seed": -1}, "Expected seed=-1"),
        ({"seed": MAX_SEED, "count": 2}, "2 seeds"),
        ({"count": 5}, "Expected count=5"),
        ({"count": 1.5}, "Expected count=1.5"),
        ({"guidance": 50.0}, "Expected guidance=50.0"),
        ({"temperature": -1.0}, "Expected temperature=-1.0"),
        ({"upsampler": "magic"}, "magic"),
    ],
)
def test_bad_input_is_an_error_in_words(change, message):
    with pytest.raises(gr.Error, match=message):
        next(generate(**INPUTS | change))


def test_seeds_and_examples_are_usable():
    assert all(0 <= random_seed() < 1_000_000 for _ in range(100))
    assert 8 <= len(example_captions("faces")) <= 10


def test_a_surprise_is_a_caption_that_can_be_drawn():
    captions = {surprise("faces")[0] for _ in range(5)}
    assert len(captions) == 5
    assert all(0 < len(caption) <= MAX_CAPTION_CHARACTERS for caption in captions)


@pytest.mark.parametrize(
    "drawing",
    [
        Drawing("faces/eps-1", "A person, 50 % & more? (ünïcode 🎈)", 7),
        Drawing("faces/public", "", 0, 3, 1.5, 0.25, "bicubic"),
    ],
)
def test_a_link_opens_the_same(drawing):
    query = to_query(drawing)
    assert dict(parse_qsl(query[1:], keep_blank_values=True)).keys() >= {
        *("caption", "seed", "checkpoint")
    }
    assert from_query(dict(parse_qsl(query[1:], keep_blank_values=True))) == drawing


def test_a_link_leaves_out_what_is_usual():
    assert (
        to_query(Drawing("faces/eps-1", "a b", 7)) == "?caption=a+b&seed=7&checkpoint=faces%2Feps-1"
    )
    assert from_query({"__theme": "dark"}) is None
    assert from_query({"caption": "hi"}) == Drawing("faces/eps-1", "hi", 0)


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({"caption": "x" * 5_000}, "5000"),
        ({"seed": "NaN"}, "seed=nan"),
        ({"seed": "seven"}, "seven"),
        ({"seed": "-1"}, "seed=-1"),
        ({"seed": "1", "count": "99"}, "count=99"),
        ({"seed": "1", "guidance": "inf"}, "guidance=inf"),
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


@pytest.fixture
def server(root, tmp_path):
    """`app.py` on a free port, a checkpoint in it as if trained on faces; gives its address."""
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(root, checkpoints)
    recarded(checkpoints / "faces" / "eps-1", dataset="faces-train")
    with serving(checkpoints, tmp_path / "gradio") as (address, _):
        yield address


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_visitor_types_a_caption_and_sees_pictures(server):
    from playwright.sync_api import sync_playwright

    complaints, hosts = [], set()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        browser = chromium.new_context(viewport={"width": 390, "height": 844})
        browser.set_default_timeout(90_000)  # a busy machine is not a broken page
        browser.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        browser.on("weberror", lambda error: complaints.append(str(error.error)))
        browser.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
        page = browser.new_page()
        page.goto(server)
        page.get_by_text("an attacker who accepts").first.wait_for()
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
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        link = page.get_by_role("link", name="link to this drawing").get_attribute("href")
        page.get_by_role("button", name="Files to download").click()
        with page.expect_download() as download:
            page.locator("a[download='result.json']").click()
        assert json.loads(download.value.path().read_text())["caption"] == CAPTION
        assert "upsampler=bicubic" in link
        for tab, button, seen in (
            ("Compare", "Compare", "#checkpoints-images img"),
            ("Bands", "Take the generated image", "#rebuilt img"),
            ("Privacy", "Compute", "text=PRV, cross-check"),
            ("Attack", None, "#attack-told >> text=This command measures it"),
            ("Attack", "Find the nearest records", "#nearest-unseen img"),
            ("Train", None, "#plan"),
            ("About", None, "text=It is synthetic"),
        ):
            page.get_by_role("tab", name=tab, exact=True).click()
            if button:
                page.get_by_role("button", name=button, exact=True).click()
            page.locator(seen).first.wait_for()
            assert page.evaluate("document.documentElement.scrollWidth") == 390, tab
        page = browser.new_page()
        page.goto(server + link)
        page.get_by_text("seed 0 · text").first.wait_for()
        assert page.get_by_label("Caption").first.input_value() == CAPTION
        chromium.close()
    assert complaints == []
    assert hosts - {None} == {"127.0.0.1"}


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_visitors_train_and_draw_with_what_is_theirs(server, image_folder, tmp_path):
    """Programs and a person: what one of them trained is not another's."""
    from gradio_client import Client, handle_file

    visitor, other = Client(server, verbose=False), Client(server, verbose=False)
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
    assert "at δ = 0.001" in told
    assert ["records", "12"] in table["data"]
    for api_name in ("/train", "/stop"):
        with pytest.raises(Exception, match=r"Make a plan|Nothing of yours"):
            other.predict(api_name=api_name)
    status, *_, files, card = visitor.predict(api_name="/train")
    assert "2 of 2 steps" in status
    assert "your-upload" in card
    with zipfile.ZipFile(files[0]) as archive:
        archive.extractall(tmp_path / "home")
    assert load_card(tmp_path / "home").steps == 2
    with pytest.raises(Exception, match="There is no result yet"):
        other.predict("A person", 1, api_name="/draw")
    assert "seed 1 for all" in visitor.predict("A person", 1, api_name="/draw")[-1]
    with pytest.raises(Exception, match="is not in the list of choices"):
        other.predict(YOURS, "A person", 1, 1, 1.5, 0.5, "bicubic", api_name="/generate")
    a_person_trains(server, image_folder)
    with pytest.raises(Exception, match="is not in the list of choices"):
        other.predict(YOURS, "A person", 1, 1, 1.5, 0.5, "bicubic", api_name="/generate")


def a_person_trains(server, image_folder):
    """In a browser; the model is offered to draw with until another plan is made."""
    from playwright.sync_api import sync_playwright

    complaints = []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        page, other = chromium.new_page(), chromium.new_page()
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        for visited in (page, other):
            visited.set_default_timeout(300_000)
            visited.goto(server)
        tab = lambda name: page.get_by_role("tab", name=name, exact=True).click()  # noqa: E731
        tab("Train")
        page.get_by_label("my own pictures").check()
        files = sorted(image_folder.iterdir())
        page.locator("input[type=file][multiple]").set_input_files(files)
        page.locator(".file-preview .filename").nth(len(files) - 1).wait_for()
        page.get_by_label("Steps").last.fill("2")
        page.get_by_role("button", name="Make a plan").click()
        page.locator("#planned").get_by_text("The noise outweighs").wait_for()
        assert page.get_by_label("yours, ε").count() == 0
        page.get_by_role("button", name="Start, or go on").click()
        page.get_by_text("done. Draw with it below").wait_for()
        tab("Generate")
        page.get_by_label("yours, ε").first.check()
        page.get_by_text("at δ = 0.001").locator("visible=true").first.wait_for()
        page.get_by_role("button", name="Generate").click()
        page.get_by_role("heading", name="Image 128×128").wait_for()
        assert page.get_by_text("link to this drawing").count() == 0
        tab("Compare")
        page.get_by_role("button", name="Compare", exact=True).click()
        page.locator("#checkpoints-images").get_by_text("yours, ε").wait_for()
        assert other.get_by_label("yours, ε").count() == 0
        tab("Train")
        page.get_by_label("Steps").last.fill("0")
        page.get_by_role("button", name="Make a plan").click()
        page.get_by_text("Expected steps=0").first.wait_for()
        tab("Generate")
        page.get_by_label("yours, ε").first.wait_for(state="detached")
        assert page.get_by_label("faces/eps-1").first.is_checked()
        chromium.close()
    assert complaints == []
