"""Pictures and the files around them, made for tests."""

from __future__ import annotations

import io
import json
from pathlib import Path

from PIL import Image

TRAITS = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs",
    "Big_Lips", "Big_Nose", "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair",
    "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses", "Goatee", "Gray_Hair",
    "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes",
    "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks",
    "Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat",
    "Wearing_Lipstick", "Wearing_Necklace", "Wearing_Necktie", "Young",
)  # fmt: skip
"""The attributes of CelebA, in the order of its files."""


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
