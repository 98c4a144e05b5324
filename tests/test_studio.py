"""The studio with the shipped checkpoints, used in a browser as a person would, and how fast it is.

    pytest -m slow tests/test_studio.py --studio-results docs/results/studio.json

also writes the seconds that were measured, on this machine; `--screenshots FOLDER` keeps pictures.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from app_server import SHIPPED, open_tab, press, serving, visiting
from bench import machine
from diffusers_models import save_ldm
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from dpwg.data.records import MAX_CAPTION_CHARACTERS

ODD = "A person 👩🏽‍🎤 with ginger hair, ünïcödé \u202egnirts\u202c, zero\u200bwidth"
BARS = {
    "page ready": 8.0,
    "first streamed picture": 2.0,
    "four upsampled pictures": 6.0,
    "compare complete": 15.0,
    "bands": 2.0,
    "privacy": 2.0,
    "attack": 2.0,
    "train": 2.0,
    "about": 2.0,
}
"""Seconds, on two cores, after the first load of each."""
ROUNDS = 3
SEEN = "() => { window.seen = new Set([...document.images].map(i => i.src)) }"
FRESH = """([what, count]) => [...document.querySelectorAll(what)].filter(i => i.offsetParent
  && i.complete && i.naturalWidth > 0 && !window.seen.has(i.src)).length >= count"""

pytestmark = pytest.mark.slow


def await_fresh(page: Page, what: str, count: int = 1) -> None:
    """Wait for so many visible pictures that were not there at the last look."""
    page.wait_for_function(FRESH, arg=[what, count])


@pytest.mark.parametrize(
    ("width", "theme"), [(1440, "light"), (1440, "dark"), (390, "light"), (390, "dark")]
)
def test_a_person_uses_every_tab(
    chromium: Browser,
    app: tuple[str, int],
    tmp_path: Path,
    width: int,
    theme: str,
    request: pytest.FixtureRequest,
) -> None:
    folder: Path | None = request.config.getoption("--screenshots")

    def looked_at(name: str) -> None:
        page.wait_for_function("!document.querySelector('.pending, .generating')")
        assert page.evaluate("document.documentElement.scrollWidth") == width, name
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=folder / f"{name}-{width}-{theme}.png", full_page=True)

    with visiting(chromium, app[0], width=width, theme=theme) as page:
        for use in (generate, compare, bands, privacy, attack, train, about):
            name = use.__name__
            open_tab(page, name.capitalize())
            page.evaluate(SEEN)
            use(page, tmp_path)
            looked_at(name)


def generate(page: Page, folder: Path) -> None:
    for caption, told in (
        ("", "no caption · seed 0"),
        (ODD, "seed 0 · text"),
        ("A person with a black bob, " * 200, "seed 0 · text"),
        ("A person with a black bob, wearing a red hoodie, yellow background", "seed 0 · text"),
    ):
        page.evaluate(SEEN)
        page.get_by_label("Caption").first.fill(caption)
        kept = page.get_by_label("Caption").first.input_value()
        assert kept == caption[:MAX_CAPTION_CHARACTERS]
        press(page, "Generate")
        await_fresh(page, "#images img")
        page.get_by_text(told).first.wait_for()
    page.locator("#swipe img").first.scroll_into_view_if_needed()
    await_fresh(page, "#swipe img", 2)


def compare(page: Page, folder: Path) -> None:
    press(page, "Compare")
    page.get_by_text("seed 0 for all · drawn in").wait_for()
    await_fresh(page, "#checkpoints-coarse img", 5)
    await_fresh(page, "#checkpoints-images img", 5)


def bands(page: Page, folder: Path) -> None:
    upload = page.locator("#upload input[type=file]")
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    upload.set_input_files(folder / "bad.png")
    page.get_by_text("Expected").first.wait_for()
    page.get_by_label("Clear").first.click()
    noise = np.random.default_rng(0).integers(0, 255, (90, 160, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    upload.set_input_files(folder / "noise.png")
    page.get_by_text("your picture").first.wait_for()
    press(page, "Take the generated image")
    page.get_by_text("faces/eps-10, seed 0").locator("visible=true").wait_for()
    await_fresh(page, "#bands img")
    await_fresh(page, "#rebuilt img")


def privacy(page: Page, folder: Path) -> None:
    page.get_by_label("Fill in from a checkpoint").click()
    page.get_by_role("option", name="faces/eps-3").click()
    await_fresh(page, ".framed img", 2)
    expect(page.get_by_label("Records", exact=True)).to_have_value("50000")


def attack(page: Page, folder: Path) -> None:
    page.locator("#attacked").get_by_text("faces/eps-10", exact=True).click()
    page.locator("#attack-told").get_by_text("faces/eps-10").first.wait_for()
    page.get_by_label("number input for Records of each kind to search").fill("50")
    press(page, "Find the nearest records")
    await_fresh(page, "#nearest-training img", 3)
    await_fresh(page, "#nearest-unseen img", 3)


def train(page: Page, folder: Path) -> None:
    page.get_by_label("number input for How many faces").fill("100")
    page.get_by_label("Steps").last.fill("3")
    press(page, "Make a plan")
    page.locator("#planned").get_by_text("The noise outweighs").wait_for()
    press(page, "Start, or go on")
    page.locator("#training").get_by_text("of 3 steps").wait_for()
    press(page, "Stop")
    page.locator("#training").get_by_text("stopped").wait_for()


def about(page: Page, folder: Path) -> None:
    await_fresh(page, ".framed img", 5)
    page.get_by_text("It is synthetic").first.wait_for()


def test_a_visitor_stops_an_upsampler_that_takes_long(
    chromium: Browser, root: Path, tmp_path: Path
) -> None:
    """It is offered, tells its steps and is stopped; afterwards the page draws as before."""
    slow = f"ldm:{save_ldm(tmp_path / 'ldm')},steps=1000"
    served = serving(root, tmp_path / "gradio", DPWG_UPSCALE_MODELS=slow)
    with served as (address, _), visiting(chromium, address, width=390) as page:
        page.get_by_role("button", name="More settings").click()
        page.get_by_label("Upsampler").fill("ldm")
        page.get_by_role("option", name="ldm:ldm,steps=1000", exact=True).click()
        page.get_by_text("Latent diffusion x4").wait_for()
        press(page, "Generate")
        page.get_by_text("upsampling step").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        stop = page.get_by_role("button", name="Stop drawing")
        stop.click()
        page.get_by_text("Stopped.", exact=True).wait_for()
        stop.wait_for(state="hidden")
        page.get_by_label("Upsampler").fill("bicubic")
        page.get_by_role("option", name="bicubic").click()
        press(page, "Generate")
        page.get_by_text("seed 0 · text").wait_for()
        page.get_by_label("Seed").fill("-1")
        press(page, "Generate")
        page.get_by_text("Expected seed=-1").first.wait_for()
        stop.wait_for(state="hidden")


def test_response_times(chromium: Browser, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """All bars are measured here; the machine at hand decides whether they are met."""
    path: Path | None = request.config.getoption("--studio-results")
    before = {name: machine()[name] for name in ("cpu", "cores", "load", "python", "torch")}
    started = time.perf_counter()
    with serving(SHIPPED, tmp_path) as (address, _):
        rounds = []
        for number in range(1 + ROUNDS):
            with visiting(chromium, address) as page:
                if not number:
                    ready = time.perf_counter() - started
                rounds.append(measured(page, seed=4 * number))
    first, *others = rounds
    worst = {name: max(times[name] for times in others) for name in first}
    seconds = {"page ready": ready, **worst}
    assert seconds.keys() == BARS.keys()
    assert all(0 < value < 300 for value in seconds.values())
    if path:
        answer = {
            "seconds": seconds,
            "bars": BARS,
            "first_load": first,
            "rounds": ROUNDS,
            "machine": before | {"gradio": version("gradio"), "chromium": chromium.version},
        }
        path.write_text(json.dumps(answer, indent=2) + "\n")


def measured(page: Page, seed: int) -> dict[str, float]:
    """Seconds from each click until what it asks for can be seen."""
    seconds: dict[str, float] = {}

    def clock(name: str, act: Callable[[], None], what: str, count: int) -> None:
        page.evaluate(SEEN)
        began = time.perf_counter()
        act()
        await_fresh(page, what, count)
        seconds[name] = time.perf_counter() - began

    page.get_by_label("Caption").first.fill("A person with a black bob, on a green background")
    page.get_by_label("number input for Images").fill("4")
    page.get_by_label("Seed").first.fill(str(seed + 1))
    began = time.perf_counter()
    clock("first streamed picture", lambda: press(page, "Generate"), "#coarse img", 4)
    await_fresh(page, "#images img", 4)
    seconds["four upsampled pictures"] = time.perf_counter() - began
    page.get_by_text("link to this drawing").wait_for()
    open_tab(page, "Compare")
    page.get_by_label("Seed").locator("visible=true").first.fill(str(seed + 2))
    clock("compare complete", lambda: press(page, "Compare"), "#checkpoints-images img", 5)

    def look_at_bands() -> None:
        open_tab(page, "Bands")
        press(page, "Take the generated image")

    clock("bands", look_at_bands, ".framed img", 3)
    open_tab(page, "Privacy")
    page.get_by_label("Noise multiplier").fill(str(1 + (1 + seed) / 100))
    clock("privacy", lambda: press(page, "Compute"), ".framed img", 2)
    page.get_by_text("is computed").locator("visible=true").first.wait_for(state="hidden")
    clock("attack", lambda: open_tab(page, "Attack"), ".framed img", 2)
    began = time.perf_counter()
    open_tab(page, "Train")
    page.locator("#plan").wait_for()
    seconds["train"] = time.perf_counter() - began
    clock("about", lambda: open_tab(page, "About"), ".framed img", 5)
    return seconds
