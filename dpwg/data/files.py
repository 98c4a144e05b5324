"""Records that lie in files: one index for every format, what is wrong with it, and its digest."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dpwg.data.records import Record

NO_CAPTION = "no caption"
NO_IMAGE = "no image"
IMAGE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
)
_SPLIT = re.compile(r"(train|test|validation|valid|val|dev)(?![a-z])")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One record of a source, its image not read yet.

    `name` is what messages call it; `read` gives the encoded image; `stamp` is what changes with
    the image's file; `problem` says why it is no record, and is empty where it is one.
    """

    name: str
    read: Callable[[], bytes]
    stamp: tuple[int, ...]
    captions: tuple[str, ...]
    attributes: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""


class FileRecords:
    """Records of files in one of `dpwg.data.formats.FORMATS`, read when they are asked for.

    `form` is the format and `source` the files that were read. `unlisted` are images that no
    metadata names; they are no records. `left_out` are the names of records that were skipped.

    `digest` covers names, captions, attributes, and size and time of change of every file, not the
    bytes: those of a large set take minutes at every start and every resumption. Whoever changes
    a file between two parts of a run, and sets back its time, goes undetected; a copy with other
    times is taken for another set, which costs an encoding and never the guarantee.
    """

    def __init__(
        self,
        name: str,
        entries: Iterable[Entry],
        *,
        form: str,
        source: str,
        unlisted: Sequence[str] = (),
        left_out: Sequence[str] = (),
    ) -> None:
        self.name, self.form, self.source = name, form, source
        self.entries, self.unlisted, self.left_out = list(entries), unlisted, left_out
        if not self.entries:
            raise ValueError(f"Expected at least one record in {source}, found none.")
        digest = hashlib.sha256()
        for entry in self.entries:
            known = (entry.name, entry.stamp, entry.captions, sorted(entry.attributes.items()))
            digest.update(repr(known).encode("utf-8", "surrogatepass"))
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Record:
        entry = self.entries[index]
        if entry.problem:
            raise ValueError(f"{entry.name} is no record: {entry.problem}.")
        return Record(
            image_bytes=entry.read(),
            captions=entry.captions,
            attributes=entry.attributes,
            name=entry.name,
        )

    def complete(self) -> FileRecords:
        """The same records, if each has an image and a caption; ValueError names one that has not.

        Whether the images can be decoded is found out when they are.
        """
        problems = [entry for entry in self.entries if entry.problem]
        if problems:
            raise ValueError(
                f"Expected an image and a caption of every record in {self.source}; "
                f"{len(problems):,} of {len(self):,} have none, first {problems[0].name}: "
                f"{problems[0].problem}. `python -m dpwg data check` names them all, --skip-broken "
                "leaves them out, which changes the number of records."
            )
        return self

    def without_broken(
        self, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> FileRecords:
        """Only the records with a caption and an image that decodes; decodes all of them.

        Each record is kept or not for what is in it alone, so that sets which differ by one record
        still do so afterwards. `progress` is called with how many are done, and in all.
        """
        kept, left_out = [], []
        for index, entry in enumerate(self.entries):
            try:
                self[index].image()
                kept.append(entry)
            except (ValueError, OSError):
                left_out.append(entry.name)
            progress(index + 1, len(self))
        return FileRecords(
            self.name,
            kept,
            form=self.form,
            source=self.source,
            unlisted=self.unlisted,
            left_out=left_out,
        )


def file_entry(
    name: str, path: Path, texts: Iterable[str], attributes: Mapping[str, str] | None = None
) -> Entry:
    """The entry of an image in a file of its own."""
    captions, problem = clean(texts), ""
    stamp: tuple[int, ...] = ()
    try:
        status = os.stat(path)
        stamp = (status.st_size, status.st_mtime_ns)
    except OSError:
        problem = f"{NO_IMAGE}, {path} is not there"
    return Entry(
        name=name,
        read=path.read_bytes,
        stamp=stamp,
        captions=captions,
        attributes=attributes or {},
        problem=problem or ("" if captions else NO_CAPTION),
    )


def clean(texts: Iterable[str]) -> tuple[str, ...]:
    """Captions as one line each, without the blank ones."""
    lines = (" ".join(text.split()) for text in texts)
    return tuple(line for line in lines if line)


def inside(folder: Path, name: str, where: str) -> Path:
    """`folder`/`name`, if that is in the folder as it is written; ValueError says where not."""
    relative = os.path.normpath(name)
    if os.path.isabs(relative) or relative.split(os.sep)[0] == "..":
        raise ValueError(f"Expected file_name={name!r} ({where}) inside {folder}.")
    return folder / relative


def read_text(path: Path) -> str:
    """A text file as UTF-8, with or without a byte order mark."""
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"Expected UTF-8 text in {path}: {error}.") from error


def images_in(folder: Path) -> Iterator[Path]:
    """The image files directly in a folder, told by their suffix, in no order."""
    for name in os.listdir(folder):
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
            yield folder / name


def one_split(files: Sequence[Path]) -> list[Path]:
    """The files that are read of these: `train-*` where names tell several splits apart."""
    splits: dict[str, list[Path]] = {}
    for file in sorted(files):
        found = _SPLIT.match(file.name.removeprefix("captions_"))
        splits.setdefault(found[1] if found else "", []).append(file)
    if len(splits) > 1 and "train" not in splits:
        names = ", ".join(file.name for file in sorted(files))
        raise ValueError(f"Expected files of one split, or of `train`, found {names}; name a file.")
    return splits["train"] if "train" in splits else next(iter(splits.values()))
