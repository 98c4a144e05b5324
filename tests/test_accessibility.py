"""axe-core finds no serious fault in any tab, light or dark, wide or narrow."""

from __future__ import annotations

import pytest
from app_server import open_tab, visiting
from playwright.sync_api import Browser

TABS = ("Generate", "Compare", "Bands", "Privacy", "Attack", "Train", "About")
AT_ONCE = "* { transition: none !important; animation: none !important }"
"""What fades in has too little contrast on its way."""


@pytest.mark.parametrize(("theme", "width"), [("light", 1440), ("dark", 390)])
def test_no_tab_has_a_serious_violation(
    chromium: Browser, app: tuple[str, int], theme: str, width: int
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    found: list[str] = []
    with visiting(chromium, app[0], width=width, theme=theme) as page:
        page.add_style_tag(content=AT_ONCE)
        for tab in TABS:
            open_tab(page, tab)
            if tab == "About":
                page.get_by_text("It is synthetic").first.wait_for()
            page.wait_for_timeout(300)
            page.wait_for_function("!document.querySelector('.pending')")
            for fault in Axe().run(page).response["violations"]:
                if fault["impact"] in ("serious", "critical"):
                    nodes = [n["html"][:160] + n["failureSummary"] for n in fault["nodes"]]
                    found.append(f"{tab}: {fault['id']} in {len(nodes)}: {nodes[:3]}")
    assert not found, "\n".join(found)
