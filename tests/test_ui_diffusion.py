"""An upsampler that takes its time, on the page: it is offered, tells its steps and is stopped."""

import shutil

import pytest
from app_server import serving
from diffusers_models import save_ldm

CHROMIUM = shutil.which("chromium")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_visitor_stops_an_upsampler_that_takes_long(root, tmp_path, monkeypatch):
    from playwright.sync_api import sync_playwright

    slow = f"ldm:{save_ldm(tmp_path / 'ldm')},steps=1000"
    monkeypatch.setenv("DPWG_UPSCALE_MODELS", slow)
    complaints = []
    with serving(root, tmp_path / "gradio") as (server, _), sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        page = chromium.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(180_000)
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.goto(server)
        page.get_by_text("an attacker who accepts").first.wait_for()
        page.get_by_role("button", name="More settings").click()
        page.get_by_label("Upsampler").fill("ldm")
        page.get_by_role("option", name="ldm:ldm,steps=1000", exact=True).click()
        page.get_by_text("Latent diffusion x4").wait_for()
        page.get_by_label("Caption").fill("A person")
        page.get_by_role("button", name="Generate").click()
        page.get_by_text("upsampling step").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        stop = page.get_by_role("button", name="Stop drawing")
        stop.click()
        page.get_by_text("Stopped.", exact=True).wait_for()
        stop.wait_for(state="hidden")
        page.get_by_label("Upsampler").fill("bicubic")
        page.get_by_role("option", name="bicubic").click()
        page.get_by_role("button", name="Generate").click()
        page.get_by_text("seed 0 · text").wait_for()
        page.get_by_label("Seed").fill("-1")
        page.get_by_role("button", name="Generate").click()
        page.get_by_text("Expected seed=-1").first.wait_for()
        stop.wait_for(state="hidden")
        chromium.close()
    assert complaints == []
