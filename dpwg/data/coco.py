"""MS-COCO from its own files: `annotations/captions_*.json` beside the image folders.

Layout of cocodataset.org: `annotations/captions_train2017.json`, and `train2017/000000000009.jpg`.
"""

from __future__ import annotations

import json
from pathlib import Path

from dpwg.data.files import FileRecords, file_entry, inside, named, of_one_split, read_text

PATTERNS = ("annotations/captions_*.json", "captions_*.json")


def read(path: Path) -> FileRecords:
    """One record an image, with all of its captions: five, of some images six or seven.

    A folder with several caption files gives the `train` one; name a file to take another.
    """
    file, *others = of_one_split(path, PATTERNS)
    if others:
        raise ValueError(f"Expected one caption file, found {file} and {named(others)}; name one.")
    root = file.parent.parent if file.parent.name == "annotations" else file.parent
    split = file.stem.removeprefix("captions_")
    folders = [place for place in (root / split, root / "images" / split) if place.is_dir()]
    if not folders:
        raise FileNotFoundError(f"Expected the images of {file} in {root}/{split}.")
    text, captions = read_text(file), dict[int, list[str]]()
    try:
        table = json.loads(text)
        names = {image["id"]: inside(image["file_name"], file.name) for image in table["images"]}
        for row in table["annotations"]:
            captions.setdefault(row["image_id"], []).append(row["caption"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"Expected COCO's `images` (id, file_name) and `annotations` (image_id, caption) in "
            f"{file}, found {type(error).__name__}: {error}."
        ) from error
    if len(names) != len(table["images"]) or captions.keys() - names.keys():
        raise ValueError(f"Expected each image once in {file}, and those of all annotations.")
    entries = [
        file_entry(name, folders[0] / name, captions.get(own, ())) for own, name in names.items()
    ]
    return FileRecords(
        f"{root.resolve().name}-{split}", entries, "coco", f"{file} and {folders[0]}"
    )
