"""Captioned pictures from a stranger: a zip, or loose files, becomes a folder that can be trained.

Nothing in an upload is trusted. Its metadata is read as that of any folder; names are checked and
then not used: the folder has names of its own. Sizes are counted while bytes are unpacked, whatever
a header says; only files that the metadata lists are unpacked at all. Every picture is decoded
once, here, and kept as its central square, a PNG without metadata. The folder appears only when all
is well.
"""

from __future__ import annotations

import functools
import hashlib
import json
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from dpwg.data.avatars import IMAGE_SIZE
from dpwg.data.files import inside
from dpwg.data.folder import METADATA, Row, gathered, metadata_of, read_rows
from dpwg.data.pictures import KINDS, SUFFIXES, open_picture, pixels, png
from dpwg.files import whole

CHUNK = 1 << 16
_END, _END_BYTES, _LONGEST_COMMENT = b"PK\x05\x06", 22, 65_535
_LISTING_BYTES = 512
"""Bytes of a zip's listing an entry, at most: names of a few hundred letters fit."""
_DAMAGED_ZIP = (
    *(zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError),
    *(RuntimeError, ValueError),
)

Opener = Callable[[], IO[bytes]]


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


def unpack_upload(files: Sequence[Path], folder: Path, limits: UploadLimits) -> int:
    """Check one zip, or loose files, and write the `folder` for `open_records`.

    Returns how many records it has. Raises ValueError, naming the file and the rule, for anything
    that is not as it should be; then nothing is left behind.
    """
    with whole(folder, private=True) as partial:
        partial.mkdir()
        if len(files) == 1 and zipfile.is_zipfile(files[0]):
            with _zip(files[0], limits) as archive:
                return _write(_zip_entries(archive, limits), partial, limits)
        openers = (
            (path.name, functools.partial(FileIO, path)) for path in files[: limits.entries + 1]
        )
        return _write(_named(openers, limits), partial, limits)


def _write(entries: Mapping[str, Opener], folder: Path, limits: UploadLimits) -> int:
    top, metadata = _find_metadata(entries)
    own = {name.removeprefix(top): opener for name, opener in entries.items()}
    rows = read_rows(metadata, _read(metadata, own[metadata], limits, limits.file_bytes))
    listed = gathered(_bounded(rows, limits), own)
    if not listed:
        raise ValueError(f"Expected at least one row in {metadata}.")
    for name, row in listed.items():
        if not any(text.strip() for text in row.texts):
            raise ValueError(f"Expected a text for {name!r:.120} in {row.where}.")
        if name not in own:
            raise ValueError(f"Expected {name!r:.120} ({row.where}) in the upload; add it.")
    for name in own.keys() - listed.keys():
        hidden = name.startswith("__MACOSX/")
        if PurePosixPath(name).suffix.lower() in SUFFIXES and not hidden:
            raise ValueError(
                f"Expected a row for {name!r:.120} in {metadata}; write its caption, or leave the "
                "picture out."
            )
    kept, seen, unpacked, total = [], dict[str, str](), 0, 0
    for number, (name, row) in enumerate(listed.items()):
        content = _read(name, own[name], limits, limits.total_bytes - unpacked)
        unpacked += len(content)
        digest = hashlib.sha256(content).hexdigest()
        if (twin := seen.setdefault(digest, name)) != name:
            raise ValueError(
                f"Expected different pictures, found {name!r:.120} to be {twin!r:.120} again: "
                "a picture that counts as two records is protected half as well; leave one out."
            )
        square_HW3, area = _picture(name, content, limits)
        total += area
        if total > limits.total_pixels:
            raise ValueError(
                f"Expected at most {limits.total_pixels / 1e6:,.0f} million pixels in all pictures "
                f"together, found more up to {name!r:.120}; shrink them first."
            )
        (folder / f"{number:06}.png").write_bytes(png(square_HW3))
        kept.append({"file_name": f"{number:06}.png", "text": row.texts})
    (folder / METADATA[0]).write_text("".join(json.dumps(row) + "\n" for row in kept))
    return len(listed)


def _bounded(rows: Iterable[Row], limits: UploadLimits) -> Iterable[Row]:
    for count, row in enumerate(rows, start=1):
        if count > limits.records:
            raise ValueError(f"Expected at most {limits.records:,} rows of metadata.")
        yield row


def _zip(path: Path, limits: UploadLimits) -> zipfile.ZipFile:
    """The opened zip, unless its listing alone would fill the memory."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _END_BYTES - _LONGEST_COMMENT))
        tail = file.read()
    end = tail[tail.rfind(_END) :]
    listing = int.from_bytes(end[12:16], "little")
    if len(end) < _END_BYTES or listing > limits.entries * _LISTING_BYTES:
        raise ValueError(f"Expected a zip of at most {limits.entries:,} entries; pack fewer.")
    try:
        return zipfile.ZipFile(path)
    except _DAMAGED_ZIP:
        raise ValueError("The zip is damaged or cut off; pack it again.") from None


def _zip_entries(archive: zipfile.ZipFile, limits: UploadLimits) -> dict[str, Opener]:
    """Every file of a zip by its name, after all of them were looked at."""
    infos = archive.infolist()
    for info in infos:
        usual = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if stat.S_ISLNK(info.external_attr >> 16) or info.flag_bits & 0x1 or not usual:
            raise ValueError(
                f"Expected {info.filename!r:.120} to be a plain file in the zip, no link, without "
                "a password, stored or deflated; pack it in the usual way."
            )
        inside(info.filename, "in the zip")
    files = (
        (info.filename, functools.partial(archive.open, info))
        for info in infos
        if not info.is_dir()
    )
    return _named(files, limits)


def _named(files: Iterable[tuple[str, Opener]], limits: UploadLimits) -> dict[str, Opener]:
    """The files of an upload by their names, which are printable, inside, and there once."""
    entries: dict[str, Opener] = {}
    for name, opener in files:
        plain = inside(name, "in the upload")
        if plain in entries or not name.isprintable():
            raise ValueError(f"Expected plain names, each once, found {name!r:.120}; rename it.")
        entries[plain] = opener
    if len(entries) > limits.entries:
        raise ValueError(f"Expected at most {limits.entries:,} files; pack fewer.")
    return entries


def _find_metadata(entries: Mapping[str, Opener]) -> tuple[str, str]:
    """The folder in which all is, "" or "name/", and the name of its metadata."""
    tops = {name.partition("/")[0] for name in entries if "/" in name} - {"__MACOSX"}
    for top in ("", *(f"{name}/" for name in tops if len(tops) == 1)):
        names = [name.removeprefix(top) for name in entries if name.startswith(top)]
        if found := metadata_of(names):
            return top, found
    raise ValueError(
        f"Expected one whole zip, or loose files, with {METADATA[0]} or {METADATA[1]} at the top, "
        "which has a file_name and a text for every picture; found neither."
    )


def _read(name: str, opener: Opener, limits: UploadLimits, left: int) -> bytes:
    """The content of a file, counted as it is unpacked, of which so many bytes are left."""
    bound, content = min(left, limits.file_bytes), bytearray()
    try:
        with opener() as file:
            while len(content) <= bound and (part := file.read(CHUNK)):
                content += part
    except _DAMAGED_ZIP:
        raise ValueError(f"{name!r:.120} is damaged in the zip; pack it again.") from None
    if len(content) > bound:
        raise ValueError(
            f"Expected at most {limits.file_bytes / 1e6:,.1f} MB a file, and "
            f"{limits.total_bytes / 1e6:,.1f} MB in all, unpacked; found more up to "
            f"{name!r:.120}; take fewer or smaller pictures."
        )
    return bytes(content)


def _picture(name: str, content: bytes, limits: UploadLimits) -> tuple[np.ndarray, int]:
    """The central square of a picture, decoded, and how many pixels all of it has."""
    try:
        picture = open_picture(content, max_pixels=limits.pixels, formats=KINDS)
        width, height = picture.size
        if max(width, height) > limits.side:
            raise ValueError(
                f"Expected sides of at most {limits.side:,} pixels, found {width:,}×{height:,}; "
                "shrink it first."
            )
        return pixels(picture, IMAGE_SIZE), width * height
    except ValueError as error:
        raise ValueError(f"{name!r:.120}: {error}") from None
