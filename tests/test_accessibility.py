"""axe-core finds no serious fault in any tab, light or dark, wide or narrow."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from app_server import serving

CHROMIUM = shutil.which("chromium")
TABS = ("Generate", "Compare", "Bands", "Privacy", "Attack", "Train", "About")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu"]
AT_ONCE = "* { transition: none !important; animation: none !important }"
"""What fades in has too little contrast on its way."""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_no_tab_has_a_serious_violation(root: Path, tmp_path: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    found: list[str] = []
    with serving(root, tmp_path) as (address, _), sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for theme, width in (("light", 1440), ("dark", 390)):
            page = chromium.new_page(viewport={"width": width, "height": 900})
            page.set_default_timeout(90_000)
            page.goto(f"{address}?__theme={theme}")
            page.add_style_tag(content=AT_ONCE)
            page.get_by_text("an attacker who accepts").first.wait_for()
            for tab in TABS:
                page.get_by_role("tab", name=tab, exact=True).click()
                if tab == "About":
                    page.get_by_text("It is synthetic").first.wait_for()
                page.wait_for_timeout(300)
                page.wait_for_function("!document.querySelector('.pending')")
                for fault in Axe().run(page).response["violations"]:
                    if fault["impact"] in ("serious", "critical"):
                        nodes = [n["html"][:160] + n["failureSummary"] for n in fault["nodes"]]
                        found.append(f"{tab}, {theme}: {fault['id']} in {len(nodes)}: {nodes[:3]}")
        chromium.close()
    assert not found, "\n".join(found)
