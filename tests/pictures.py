"""Pictures and the files around them, made for tests."""

from __future__ import annotations

import io
import json
from pathlib import Path

from PIL import Image


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def plain(
    colour: tuple[int, int, int],
    form: str = "PNG",
    size: tuple[int, int] = (20, 14),
    **more: object,
) -> bytes:
    """A picture of one colour."""
    return encoded(Image.new("RGB", size, colour), form, **more)


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows(*names_and_texts: tuple[object, object], **more: object) -> str:
    """A metadata.jsonl."""
    return "\n".join(
        json.dumps({"file_name": name, "text": text} | more) for name, text in names_and_texts
    )
