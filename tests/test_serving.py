"""What a server keeps for visitors: nobody else can fetch it, and nothing outlives the server."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from app_server import ROOT, serving
from PIL import Image

from dpwg.ui.serving import PREFIX, remove_leftovers

SERVER = """
import sys
from dpwg.ui.serving import server_folder
(server_folder() / "upload.png").write_bytes(b"a face")
print(server_folder(), flush=True)
sys.stdin.read()
"""


def a_server(root: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that keeps an upload, and its folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        cwd=ROOT,
        env=os.environ | {"GRADIO_TEMP_DIR": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def ended(process: subprocess.Popen[str], *, killed: bool) -> None:
    if killed:
        process.kill()
    process.communicate()  # which closes what it waits for


def test_the_next_server_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    killed, left = a_server(tmp_path)
    living, kept = a_server(tmp_path)
    ended(killed, killed=True)
    assert (left / "upload.png").exists()
    assert left.stat().st_mode & 0o777 == 0o700
    new = tmp_path / f"{PREFIX}new"
    new.mkdir()
    remove_leftovers(tmp_path)
    assert {path for path in tmp_path.iterdir() if path.is_dir()} == {kept, new}
    os.utime(new, (0, 0))
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [kept]
    ended(living, killed=True)
    third, fresh = a_server(tmp_path)
    assert list(tmp_path.iterdir()) == [fresh]
    ended(third, killed=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("port", ["", "http", "-1", "0", "65536", "7860.0"])
def test_a_bad_port_ends_the_app_in_one_sentence(port: str) -> None:
    ran = subprocess.run(
        [sys.executable, ROOT / "app.py"],
        env=os.environ | {"GRADIO_SERVER_PORT": port},
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.count("\n") == 1
    assert "GRADIO_SERVER_PORT" in ran.stderr


@pytest.fixture(scope="module")
def app(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The app behind a proxy that is not there, and where its folder lies."""
    work = tmp_path_factory.mktemp("served")
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy"), "http://127.0.0.1:9")
    with serving(root, work, **proxies) as (address, _):
        yield address, work
    assert list(work.iterdir()) == []


def uploaded(address: str, name: str, content: bytes) -> Path:
    answer = httpx.post(f"{address}gradio_api/upload", files={"files": (name, content)})
    return Path(answer.raise_for_status().json()[0])


def a_picture(colour: str = "teal") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    return file.getvalue()


def taken(address: str, file: Path) -> str:
    """What the Bands tab answers to somebody who says that a file is their upload."""
    way = f"{address}gradio_api/call/take_upload"
    payload = {"path": str(file), "meta": {"_type": "gradio.FileData"}}
    event = httpx.post(way, json={"data": [payload]}).raise_for_status().json()["event_id"]
    return httpx.get(f"{way}/{event}", timeout=60).text


def test_nobody_learns_whether_another_visitor_uploaded_a_file(app: tuple[str, Path]) -> None:
    address, _ = app
    theirs = uploaded(address, "face.png", a_picture())
    mine = uploaded(address, "mine.png", a_picture())
    assert theirs.exists()
    answers = set()
    for guess in (mine.with_name("face.png"), mine.with_name("nobody.png")):
        for way in ("file=", "file/"):
            assert httpx.get(f"{address}gradio_api/{way}{guess}").status_code != 200
        answers.add(taken(address, guess))
    (told,) = answers
    assert "event: error" in told
    assert theirs.exists()


def test_an_upload_is_removed_when_it_was_read(app: tuple[str, Path]) -> None:
    address, _ = app
    mine = uploaded(address, "mine.png", a_picture("red"))
    assert "event: complete" in taken(address, mine)
    assert not mine.exists()
    assert "event: error" in taken(address, mine)
