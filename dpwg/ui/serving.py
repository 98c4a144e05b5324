"""How the app is served: its port, its one temporary folder, and uploads that nobody can name.

Whatever this process keeps for visitors lies in one folder, closed to other users of the machine
and locked while the process lives. However a server ends, the next one removes what no living one
holds. Gradio is imported only when its settings, which it reads at once, are in place.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import multiprocessing
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

PREFIX, LOCK = "dpwg-server-", "lock"
UNLOCKED_SECONDS = 60.0
"""How long a folder may be without a lock: its server has just made it."""


def serve() -> None:
    """Serve the app where GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say, until it is ended.

    Raises ValueError for a port that is none, OSError for one that is taken.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder is removed
    port = os.environ.setdefault("GRADIO_SERVER_PORT", "7860")
    if not (port.isdecimal() and 0 < int(port) < 2**16):
        raise ValueError(f"Expected GRADIO_SERVER_PORT={port!r} to be a port, 1 to 65535.")
    host = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    beside = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    os.environ["no_proxy"] = ",".join(filter(None, [beside, "localhost", "127.0.0.1", "::1", host]))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # runs train beside the server
    folder = server_folder()
    tempfile.tempdir = str(folder)
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "gradio")
    _launch()


def _launch() -> None:
    from dpwg.ui.demo import CSS, SCRIPT, THEME, build_demo, read_cards
    from dpwg.ui.limits import MAX_UPLOAD_MEGABYTES, QUEUE_SIZE, TRAIN_UPLOAD_MEGABYTES
    from dpwg.ui.pipelines import borrowing
    from dpwg.ui.train import train_tab_is_on

    hide_uploads()
    if importlib.util.find_spec("spaces"):
        borrowing()
    demo = build_demo().queue(max_size=QUEUE_SIZE)
    threading.Thread(target=read_cards, daemon=True).start()
    megabytes = TRAIN_UPLOAD_MEGABYTES if train_tab_is_on() else MAX_UPLOAD_MEGABYTES
    demo.launch(
        theme=THEME, css=CSS, head=SCRIPT, footer_links=["api"], max_file_size=megabytes * 1_000_000
    )


def hide_uploads() -> None:
    """Have every upload lie in a folder of its own that cannot be guessed.

    Gradio names the folder by the file's content: whoever has the same file could ask, under any
    name, whether somebody else has uploaded it.
    """
    from gradio import route_utils

    class Upload(route_utils.GradioUploadFile):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.sha.update(secrets.token_bytes(32))

    route_utils.GradioUploadFile = Upload  # type: ignore[misc]


@functools.cache
def server_folder() -> Path:
    """This process's folder, made by the first call and removed when the process ends."""
    root = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir())
    root.mkdir(parents=True, exist_ok=True)
    remove_leftovers(root)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root)).resolve()
    lock = FileLock(folder / LOCK)
    lock.acquire()
    atexit.register(_remove, folder, lock)
    atexit.register(_end_runs)  # before that
    return folder


def remove_leftovers(root: Path) -> None:
    """Remove the folders of servers that are no more."""
    for folder in root.glob(f"{PREFIX}*"):
        try:
            lock = FileLock(folder / LOCK, timeout=0)
            if (folder / LOCK).exists():
                lock.acquire()
            elif time.time() - folder.stat().st_mtime < UNLOCKED_SECONDS:
                continue
            _remove(folder, lock)
        except (OSError, Timeout):  # another user's, gone by now, or a living server's
            continue


def _end_runs() -> None:
    for run in multiprocessing.active_children():
        run.kill()
        run.join()


def _remove(folder: Path, lock: FileLock) -> None:
    lock.release()  # Windows removes no open file
    shutil.rmtree(folder, ignore_errors=True)
