"""`app.py` in a process of its own, and a browser's page of it, for tests that visit it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "checkpoints"
COMMAND = (sys.executable, ROOT / "app.py")


@contextmanager
def serving(
    checkpoints: Path, work: Path, *, command: tuple[Path | str, ...] = COMMAND, **settings: str
) -> Iterator[tuple[str, int]]:
    """Serve checkpoints on a free port; gives the address and the process. `settings` go to the
    environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "DPWG_CHECKPOINTS": str(checkpoints),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(work),
        "PYTHONUNBUFFERED": "1",
        **settings,
    }
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if "Running on local URL" in line:
            break
    assert process.poll() is None, "".join(said)
    try:
        yield f"http://127.0.0.1:{port}/", process.pid
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


@contextmanager
def visiting(
    chromium: Browser, address: str, *, width: int = 1440, theme: str = "light"
) -> Iterator[Page]:
    """A page that must complain of nothing and ask nobody but the app."""
    wrong: list[str] = []

    def asked(url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob") and parts.netloc != urlsplit(address).netloc:
            wrong.append(url)

    context = chromium.new_context(viewport={"width": width, "height": 900})
    context.set_default_timeout(300_000)  # a busy machine is not a broken page
    context.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    context.on("weberror", lambda error: wrong.append(str(error.error)))
    context.on("request", lambda request: asked(request.url))
    page = context.new_page()
    page.goto(f"{address}?__theme={theme}")
    page.get_by_text("an attacker who accepts").first.wait_for()
    yield page
    context.close()
    assert wrong == []


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()
