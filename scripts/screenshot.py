"""A picture of the app for the README, made from the real app.

    python -m scripts.screenshot docs/app.png

Needs Playwright and a Chromium, such as Debian's.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
DRAWING = {
    "caption": "A smiling young woman with long blond hair",
    "seed": 3,
    "count": 4,
    "checkpoint": "celeba/eps-10",
}
SIZE = {"width": 1280, "height": 900}


def screenshot(out: Path) -> None:
    """Serve the app, let it draw, and take the picture when it is done."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = os.environ | {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
    app = subprocess.Popen([sys.executable, str(ROOT / "app.py")], env=served)
    address = f"http://127.0.0.1:{port}/"
    try:
        _await(address)
        with sync_playwright() as browsers:
            browser = browsers.chromium.launch(executable_path=shutil.which("chromium"))
            page = browser.new_page(viewport=SIZE)  # type: ignore[arg-type]
            page.set_default_timeout(600_000)
            page.goto(f"{address}?{urlencode(DRAWING | {'__theme': 'light'})}")
            page.wait_for_function("document.querySelectorAll('.results img').length >= 4")
            page.wait_for_function("!document.querySelector('.pending, .generating')")
            page.wait_for_timeout(2000)  # pictures fade in
            page.screenshot(path=out)
            browser.close()
    finally:
        app.terminate()
        app.wait()


def _await(address: str, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(address).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


if __name__ == "__main__":
    screenshot(Path(sys.argv[1]))
