"""Captioned pictures from a stranger: a zip, or loose files, becomes a folder that can be trained.

Nothing in an upload is trusted. Names are checked and then not used: the folder has names of its
own. Sizes are counted while bytes are unpacked, whatever a header says; only files that the
metadata lists are unpacked at all. Every picture is decoded once, here, and kept as its central
square, a PNG without metadata. The folder appears only when all is well.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from dpwg.data.avatars import IMAGE_SIZE
from dpwg.data.folder import METADATA
from dpwg.data.pictures import SUFFIXES, central_square, open_picture

CHUNK = 1 << 16
_END, _END_BYTES, _LONGEST_COMMENT = b"PK\x05\x06", 22, 65_535
_LISTING_BYTES = 512
"""Bytes of a zip's listing an entry, at most: names of a few hundred letters fit."""

Opener = Callable[[], BinaryIO]


@dataclass(frozen=True, kw_only=True)
class UploadLimits:
    """What an upload may hold at most; `total_…` are over all of its pictures."""

    records: int
    entries: int
    file_bytes: int
    total_bytes: int
    side: int
    pixels: int
    total_pixels: int
    caption_characters: int


def unpack_upload(files: Sequence[Path], folder: Path, limits: UploadLimits) -> int:
    """Check one zip, or loose files, and write the `folder` for `open_records`.

    Returns how many records it has. Raises ValueError, naming the file and the rule, for anything
    that is not as it should be; then nothing is left behind.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if len(files) == 1 and zipfile.is_zipfile(files[0]):
            with _zip(files[0], limits) as archive:
                count = _write(_zip_entries(archive, limits), partial, limits)
        else:
            count = _write(_loose_entries(files, limits), partial, limits)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return count


def _write(entries: dict[str, Opener], folder: Path, limits: UploadLimits) -> int:
    top, metadata = _find_metadata(entries)
    text = _text(metadata, _read(metadata, entries[metadata], limits))
    captions = _captions(metadata, text, limits)
    for name, row in captions.items():
        if top + name not in entries:
            raise ValueError(f"Expected {_quoted(name)} ({row.place}) in the upload; add it.")
    for name in entries:
        own, hidden = name.removeprefix(top), name.startswith("__MACOSX/")
        if PurePosixPath(own).suffix.lower() in SUFFIXES and own not in captions and not hidden:
            raise ValueError(
                f"Expected a row for {_quoted(own)} in {metadata}; write its caption, or leave the "
                "picture out."
            )
    kept, seen, unpacked, pixels = [], dict[str, str](), 0, 0
    for number, (name, row) in enumerate(captions.items()):
        content = _read(name, entries[top + name], limits, unpacked)
        unpacked += len(content)
        digest = hashlib.sha256(content).hexdigest()
        if (twin := seen.setdefault(digest, name)) != name:
            raise ValueError(
                f"Expected different pictures, found {_quoted(name)} to be {_quoted(twin)} again: "
                "a picture that counts as two records is protected half as well; leave one out."
            )
        square, area = _picture(name, content, limits)
        pixels += area
        if pixels > limits.total_pixels:
            raise ValueError(
                f"Expected at most {limits.total_pixels / 1e6:,.0f} million pixels in all pictures "
                f"together, found more up to {_quoted(name)}; shrink them first."
            )
        own = f"{number:06}.png"
        Image.fromarray(square).save(folder / own)
        kept += [{"file_name": own, "text": caption} for caption in row.texts]
    (folder / METADATA[0]).write_text("".join(json.dumps(row) + "\n" for row in kept))
    return len(captions)


def _zip(path: Path, limits: UploadLimits) -> zipfile.ZipFile:
    """The opened zip, unless its listing alone would fill the memory."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _END_BYTES - _LONGEST_COMMENT))
        tail = file.read()
    end = tail[tail.rfind(_END) :]
    listing = int.from_bytes(end[12:16], "little")
    if len(end) < _END_BYTES or listing > limits.entries * _LISTING_BYTES:
        raise ValueError(f"Expected a zip of at most {limits.entries:,} entries; pack fewer.")
    try:
        return zipfile.ZipFile(path)
    except _BROKEN_ZIP:
        raise ValueError("The zip is damaged or cut off; pack it again.") from None


def _zip_entries(archive: zipfile.ZipFile, limits: UploadLimits) -> dict[str, Opener]:
    """Every file of a zip by its name, after all of them were looked at."""
    infos = archive.infolist()
    if len(infos) > limits.entries:
        raise ValueError(
            f"Expected a zip of at most {limits.entries:,} entries, found {len(infos):,}; "
            "pack fewer."
        )
    entries: dict[str, Opener] = {}
    for info in infos:
        name = info.filename
        _check_name(name, "in the zip")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ValueError(f"Expected no links in the zip, found {_quoted(name)}; pack the file.")
        if info.flag_bits & 0x1:
            raise ValueError(f"Expected no password, found one on {_quoted(name)}; pack without.")
        if info.is_dir():
            continue
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(
                f"Expected {_quoted(name)} to be stored or deflated; pack it in the usual way."
            )
        if name in entries:
            raise ValueError(f"Expected every name once in the zip, found {_quoted(name)} twice.")
        entries[name] = _opener(archive, info)
    return entries


def _opener(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Opener:
    return lambda: archive.open(info)  # type: ignore[return-value]


def _loose_entries(files: Sequence[Path], limits: UploadLimits) -> dict[str, Opener]:
    """Loose files by their own names."""
    if len(files) > limits.entries:
        raise ValueError(f"Expected at most {limits.entries:,} files, found {len(files):,}.")
    entries: dict[str, Opener] = {}
    for path in files:
        if path.suffix.lower() == ".zip":
            raise ValueError(
                f"Expected {_quoted(path.name)} to be one whole zip, by itself; pack it again."
            )
        if path.name in entries:
            raise ValueError(f"Expected every name once, found {_quoted(path.name)} twice.")
        entries[path.name] = _path_opener(path)
    return entries


def _path_opener(path: Path) -> Opener:
    return lambda: path.open("rb")


def _find_metadata(entries: dict[str, Opener]) -> tuple[str, str]:
    """The folder in which all is, "" or "name/", and the name of its metadata."""
    tops = {name.partition("/")[0] for name in entries if "/" in name} - {"__MACOSX"}
    for top in ("", *(f"{name}/" for name in tops if len(tops) == 1)):
        found = [top + name for name in METADATA if top + name in entries]
        if len(found) > 1:
            raise ValueError(f"Expected {METADATA[0]} or {METADATA[1]}, found both; keep one.")
        if found:
            return top, found[0]
    raise ValueError(
        f"Expected {METADATA[0]} or {METADATA[1]} at the top, with a file_name and a text for "
        "every picture; found neither."
    )


def _read(name: str, opener: Opener, limits: UploadLimits, unpacked: int = 0) -> bytes:
    """The content of a file, counted as it is unpacked, and after what is `unpacked` already."""
    left = limits.total_bytes - unpacked
    parts, count = [], 0
    try:
        with opener() as file:
            while part := file.read(CHUNK):
                count += len(part)
                if count > min(left, limits.file_bytes):
                    break
                parts.append(part)
    except _BROKEN_ZIP:
        raise ValueError(f"{_quoted(name)} is damaged in the zip; pack it again.") from None
    if count > limits.file_bytes:
        raise ValueError(
            f"Expected {_quoted(name)} to have at most {limits.file_bytes / 1e6:,.0f} MB unpacked; "
            "shrink it."
        )
    if count > left:
        raise ValueError(
            f"Expected at most {limits.total_bytes / 1e6:,.0f} MB unpacked, found more up to "
            f"{_quoted(name)}; take fewer or smaller pictures."
        )
    return b"".join(parts)


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Expected {_quoted(name)} in UTF-8, found another encoding at byte {error.start:,}; "
            "save it as UTF-8."
        ) from None


@dataclass(frozen=True)
class _Row:
    """The captions of a picture, and where the first one stands."""

    place: str
    texts: list[str]


def _captions(metadata: str, text: str, limits: UploadLimits) -> dict[str, _Row]:
    """Captions by file name, in the order of the metadata."""
    captions: dict[str, _Row] = {}
    rows = _json_rows(text) if metadata.endswith(METADATA[0]) else _csv_rows(text)
    for count, (number, row) in enumerate(rows, start=1):
        place = f"row {number:,} of {PurePosixPath(metadata).name}"
        if not isinstance(row, dict):
            raise ValueError(f"Expected file_name and text in {place}.")
        name, caption = row.get("file_name"), row.get("text")
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"Expected a file_name in {place}; write which picture it is of.")
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(f"Expected a text for {_quoted(name)} in {place}; write its caption.")
        _check_name(name, f"in {place}")
        if len(caption) > limits.caption_characters:
            raise ValueError(
                f"Expected a text of at most {limits.caption_characters:,} characters in {place}, "
                f"found {len(caption):,}; shorten it."
            )
        if PurePosixPath(name).suffix.lower() not in SUFFIXES:
            raise ValueError(f"Expected {_quoted(name)} ({place}) to end in {', '.join(SUFFIXES)}.")
        if count > limits.records:
            raise ValueError(f"Expected at most {limits.records:,} rows in {metadata}.")
        own = captions.setdefault(name, _Row(place, []))
        if caption in own.texts:
            raise ValueError(
                f"Expected different texts for {_quoted(name)}, found one twice ({place})."
            )
        own.texts.append(caption)
    if not captions:
        raise ValueError(f"Expected at least one row in {metadata}.")
    return captions


def _json_rows(text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError(f"Expected JSON in row {number:,} of {METADATA[0]}.") from None


def _csv_rows(text: str) -> Iterator[tuple[int, Any]]:
    table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        missing = {"file_name", "text"} - set(table.fieldnames or ())
        if missing:
            raise ValueError(f"Expected columns file_name and text in {METADATA[1]}.")
        for row in table:
            yield table.line_num, row
    except csv.Error as error:
        raise ValueError(
            f"Expected CSV in row {table.line_num:,} of {METADATA[1]}: {error}."
        ) from None


def _check_name(name: str, place: str) -> None:
    """Refuse names that lead out of a folder on any system."""
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or name[1:2] == ":":
        raise ValueError(
            f"Expected a name inside the upload, found the absolute path {_quoted(name)} {place}."
        )
    if ".." in parts or "\\" in name or not name.isprintable():
        raise ValueError(f"Expected a plain name, found {_quoted(name)} {place}; rename it.")


def _picture(name: str, content: bytes, limits: UploadLimits) -> tuple[np.ndarray, int]:
    """The central square of a picture, decoded, and how many pixels all of it has."""
    try:
        picture = open_picture(io.BytesIO(content), limits.pixels)
        width, height = picture.size
        if max(width, height) > limits.side:
            raise ValueError(
                f"Expected sides of at most {limits.side:,} pixels, found {width:,}×{height:,}; "
                "shrink it first."
            )
        said = SUFFIXES[PurePosixPath(name).suffix.lower()]
        if picture.format != said:
            raise ValueError(f"Expected {said}, as it is named, found {picture.format}; rename it.")
        return central_square(picture, IMAGE_SIZE), width * height
    except ValueError as error:
        raise ValueError(f"{_quoted(name)}: {error}") from None


def _quoted(name: str) -> str:
    return f"{name!r:.120}"


_BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
