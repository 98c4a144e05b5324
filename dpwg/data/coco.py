"""MS-COCO from its own files: `annotations/captions_*.json` beside the image folders.

Layout of cocodataset.org: `annotations/captions_train2017.json`, and `train2017/000000000009.jpg`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dpwg.data.files import FileRecords, file_entry, inside, one_split, read_text


def found_in(path: Path) -> bool:
    """Whether a path is COCO's folder, or one of its caption files."""
    if path.is_file():
        return path.match("captions_*.json")
    return any((path / "annotations").glob("captions_*.json"))


def read(path: Path) -> FileRecords:
    """One record an image, with all of its captions: five, of some images six or seven.

    A folder with several caption files gives the `train` one; name a file to take another.
    """
    file = path
    if not path.is_file():
        found = sorted((path / "annotations").glob("captions_*.json"))
        if not found:
            raise FileNotFoundError(f"Expected annotations/captions_*.json in {path}.")
        file, *others = one_split(found)
        if others:
            raise ValueError(f"Expected one caption file, found {file} and {others[0]}; name one.")
    root = file.parent.parent if file.parent.name == "annotations" else file.parent
    split = file.stem.removeprefix("captions_")
    folders = (root / split, root / "images" / split)
    folder = next((place for place in folders if place.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(
            f"Expected the images of {file} in {' or '.join(map(str, folders))}."
        )
    images, annotations = _tables(file)
    captions: dict[int, list[str]] = {}
    names: dict[int, str] = {}
    for number, image in enumerate(images):
        own, name = _value(image, "id", int, file), _value(image, "file_name", str, file)
        if own in names:
            raise ValueError(f"Expected each image once in {file}, found id={own} again.")
        names[own], captions[own] = name, []
        inside(folder, name, f"image {number} of {file.name}")
    for annotation in annotations:
        own = _value(annotation, "image_id", int, file)
        if own not in captions:
            raise ValueError(f"Expected image_id={own} among the images of {file}.")
        captions[own].append(_value(annotation, "caption", str, file))
    entries = (
        file_entry(name, inside(folder, name, file.name), captions[own])
        for own, name in names.items()
    )
    name = f"{root.resolve().name}-{split}"
    return FileRecords(name, entries, form="coco", source=f"{file} and {folder}")


def _tables(file: Path) -> tuple[list[Any], list[Any]]:
    try:
        content = json.loads(read_text(file))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"Expected JSON in {file}: {error}.") from error
    tables = content if isinstance(content, dict) else {}
    images, annotations = tables.get("images"), tables.get("annotations")
    if not (isinstance(images, list) and isinstance(annotations, list)):
        raise ValueError(f"Expected the lists `images` and `annotations` in {file}.")
    return images, annotations


def _value(row: Any, key: str, kind: type, file: Path) -> Any:
    value = row.get(key) if isinstance(row, dict) else None
    if not isinstance(value, kind):
        raise ValueError(f"Expected {key!r} as {kind.__name__} in {file}, found {str(row)[:80]}.")
    return value
