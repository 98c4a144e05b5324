"""MM-CelebA-HQ from its own files: an image folder, a caption file an image, attributes.

Layout of Multi-Modal-CelebA-HQ: `image/0.jpg`, `text/celeba-caption/0.txt` with ten captions, one a
line; or CelebAMask-HQ's `CelebA-HQ-img/0.jpg` and `CelebAMask-HQ-attribute-anno.txt`. Who is in an
image follows from CelebAMask-HQ's `CelebA-HQ-to-CelebA-mapping.txt` and CelebA's
`identity_CelebA.txt`. The split files are pickles, which can run programs: they are not read, all
images are taken.
"""

from __future__ import annotations

from pathlib import Path

from dpwg.data.files import (
    IMAGE_SUFFIXES,
    FileRecords,
    columns_of,
    file_entry,
    found,
    lines_of,
    name_of,
)

TEXTS = ("text/celeba-caption/*.txt", "celeba-caption/*.txt", "text/*.txt")
IMAGE_FOLDERS = ("image/images", "image", "images", "CelebA-HQ-img")
MAPPING, IDENTITIES = "CelebA-HQ-to-CelebA-mapping.txt", "identity_CelebA.txt"
ATTRIBUTE_FILES = ("CelebAMask-HQ-attribute-anno.txt", "list_attr_celeba.txt")


def found_in(path: Path) -> bool:
    """Whether a path is a folder with both kinds of files."""
    return bool(found(path, TEXTS) and _images(path))


def read(path: Path) -> FileRecords:
    """One record an image with the captions of its text file, and its attributes ("1" or "-1").

    With both files that tell who is in an image, `person` is an attribute too.
    """
    captions = {file.stem: file for file in found(path, TEXTS)}
    files = {file.stem: file for file in _images(path)}
    told, entries = _attributes(path), []
    for stem in sorted(files.keys() | captions.keys(), key=_by_number):
        file = files.get(stem, path / f"{stem}.jpg")
        lines = lines_of(captions[stem]) if stem in captions else []
        entries.append(file_entry(file.name, file, lines, told.get(stem)))
    return FileRecords(name_of(path), entries, "celeba", str(path))


def _images(path: Path) -> list[Path]:
    for folder in IMAGE_FOLDERS:
        there = (path / folder).glob("*")
        if files := [file for file in there if file.suffix.lower() in IMAGE_SUFFIXES]:
            return files
    return []


def _by_number(stem: str) -> tuple[int, str]:
    return (int(stem), "") if stem.isdecimal() else (-1, stem)


def _attributes(path: Path) -> dict[str, dict[str, str]]:
    """What the tables that are there tell of each image, by its name without suffix."""
    told: dict[str, dict[str, str]] = {}
    if file := next((path / name for name in ATTRIBUTE_FILES if (path / name).is_file()), None):
        names = [*lines_of(file), "", ""][1].split()  # behind a line with the count
        for name, *values in columns_of(file, 2, 1 + len(names)):
            told[Path(name).stem] = dict(zip(names, values, strict=True))
    if (path / MAPPING).is_file() and (path / IDENTITIES).is_file():
        persons = dict(columns_of(path / IDENTITIES, 0, 2))
        for stem, _, original in columns_of(path / MAPPING, 1, 3):
            if original in persons:
                told.setdefault(stem, {})["person"] = persons[original]
    return told
