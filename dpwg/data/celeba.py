"""MM-CelebA-HQ from its own files: an image folder, a caption file an image, attributes.

Layout of Multi-Modal-CelebA-HQ: `image/0.jpg`, `text/celeba-caption/0.txt` with ten captions, one a
line; or CelebAMask-HQ's `CelebA-HQ-img/0.jpg` and `CelebAMask-HQ-attribute-anno.txt`. Who is in an
image follows from CelebAMask-HQ's `CelebA-HQ-to-CelebA-mapping.txt` and CelebA's
`identity_CelebA.txt`. The split files are pickles, which can run programs: they are not read, all
images are taken.
"""

from __future__ import annotations

from pathlib import Path

from dpwg.data.files import NO_IMAGE, Entry, FileRecords, clean, file_entry, images_in, read_text

TEXT_FOLDERS = ("text/celeba-caption", "celeba-caption", "text")
IMAGE_FOLDERS = ("image/images", "image", "images", "CelebA-HQ-img")
MAPPING, IDENTITIES = "CelebA-HQ-to-CelebA-mapping.txt", "identity_CelebA.txt"
ATTRIBUTE_FILES = ("CelebAMask-HQ-attribute-anno.txt", "list_attr_celeba.txt")


def found_in(path: Path) -> bool:
    """Whether a path is a folder with both kinds of files."""
    return None not in (_text_folder(path), _image_folder(path))


def read(path: Path) -> FileRecords:
    """One record an image with the captions of its text file, and its attributes ("1" or "-1").

    With both files that tell who is in an image, `person` is an attribute too.
    """
    texts, images = _text_folder(path), _image_folder(path)
    if texts is None or images is None:
        raise FileNotFoundError(
            f"Expected caption files in one of {', '.join(TEXT_FOLDERS)} and images in one of "
            f"{', '.join(IMAGE_FOLDERS)} in {path}."
        )
    attributes: dict[str, dict[str, str]] = {}
    for name in ATTRIBUTE_FILES:
        if (path / name).is_file():
            attributes = _attributes(path / name)
            break
    for stem, person in _persons(path).items():
        attributes.setdefault(stem, {})["person"] = person
    captions = {file.stem: file for file in texts.glob("*.txt")}
    entries: list[Entry] = []
    for image in sorted(images_in(images), key=_by_number):
        file = captions.pop(image.stem, None)
        lines = read_text(file).splitlines() if file else ()
        entries.append(file_entry(image.name, image, lines, attributes.get(image.stem)))
    for stem, file in sorted(captions.items()):
        missing = images / f"{stem}.jpg"
        entries.append(
            Entry(
                name=file.name,
                read=missing.read_bytes,
                stamp=(),
                captions=clean(read_text(file).splitlines()),
                problem=f"{NO_IMAGE} {missing.stem} in {images}",
            )
        )
    source = f"{images} and {texts}"
    return FileRecords(path.resolve().name, entries, form="celeba", source=source)


def _text_folder(path: Path) -> Path | None:
    return next((path / n for n in TEXT_FOLDERS if any((path / n).glob("*.txt"))), None)


def _image_folder(path: Path) -> Path | None:
    places = (path / name for name in IMAGE_FOLDERS)
    return next((p for p in places if p.is_dir() and any(images_in(p))), None)


def _by_number(image: Path) -> tuple[int, str]:
    return (int(image.stem), "") if image.stem.isdecimal() else (-1, image.stem)


def _persons(path: Path) -> dict[str, str]:
    """The number of the person in each image; none without both files."""
    mapping, identities = path / MAPPING, path / IDENTITIES
    if not (mapping.is_file() and identities.is_file()):
        return {}
    persons = {row[0]: row[1] for row in _columns(identities, 2)}
    return {row[0]: persons[row[2]] for row in _columns(mapping, 3)[1:] if row[2] in persons}


def _columns(file: Path, count: int) -> list[list[str]]:
    rows = [line.split() for line in read_text(file).splitlines() if line.strip()]
    for number, row in enumerate(rows, start=1):
        if len(row) != count:
            raise ValueError(f"Expected {count} columns in row {number} of {file}: {row}.")
    return rows


def _attributes(file: Path) -> dict[str, dict[str, str]]:
    """Rows behind a line with their count and a line with the names of the columns."""
    lines = read_text(file).splitlines()
    if len(lines) < 2 or not lines[0].strip().isdecimal():
        raise ValueError(f"Expected a count, then the names of the attributes, in {file}.")
    columns = lines[1].split()
    found: dict[str, dict[str, str]] = {}
    for number, line in enumerate(lines[2:], start=3):
        if not line.strip():
            continue
        name, *values = line.split()
        if len(values) != len(columns):
            raise ValueError(
                f"Expected {len(columns)} values in line {number} of {file}, found {len(values)}."
            )
        found[Path(name).stem] = dict(zip(columns, values, strict=True))
    return found
