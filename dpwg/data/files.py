"""Records that lie in files: one index for every format, what is wrong with it, and its digest."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dpwg.data.records import MAX_CAPTION_CHARACTERS, Record

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
    the image; `texts` are its captions at full length, or what makes them; `problem` says why it is
    no record, and is empty where it is one.
    """

    name: str
    read: Callable[[], bytes]
    stamp: tuple[int, ...]
    texts: tuple[str, ...] | Callable[[], tuple[str, ...]] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""

    @property
    def all_texts(self) -> tuple[str, ...]:
        """Its captions at full length."""
        return self.texts() if callable(self.texts) else self.texts

    @property
    def captions(self) -> tuple[str, ...]:
        """Its captions as a run takes them."""
        return tuple(text[:MAX_CAPTION_CHARACTERS] for text in self.all_texts)


@dataclass(eq=False)
class FileRecords:
    """Records of files in one of `dpwg.data.formats.FORMATS`, read when they are asked for.

    `form` is the format and `source` the files that were read. `unlisted` are images that no
    metadata names; they are no records. `left_out` are the names of records that were skipped.

    `digest` covers names, captions, attributes, and size and time of change of every file, not the
    bytes: those of a large set take minutes at every start and every resumption. Whoever changes
    a file between two parts of a run, and sets back its time, goes undetected; a copy with other
    times is taken for another set, which costs an encoding and never the guarantee.
    """

    name: str
    entries: Sequence[Entry]
    form: str
    source: str
    unlisted: Sequence[str] = ()
    left_out: Sequence[str] = ()
    digest: str = ""

    def __post_init__(self) -> None:
        if not self.entries:
            raise ValueError(f"Expected at least one record in {self.source}, found none.")
        self.digest = self.digest or digest_of(self.entries)

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

    def first(self, count: int | None) -> FileRecords:
        """The first records, so many or all; ValueError where there are not so many."""
        if count is not None and not 1 <= count <= len(self):
            raise ValueError(f"Expected count={count} in [1, {len(self)}] of {self.name}.")
        return self if count is None else replace(self, entries=self.entries[:count], digest="")

    def complete(self) -> FileRecords:
        """The same records, if each has an image and a caption; ValueError names one that has not.

        Whether the images can be decoded is found out when they are.
        """
        if problems := [entry for entry in self.entries if entry.problem]:
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
        if not left_out:
            return self
        digest = hashlib.sha256(repr((self.digest, left_out)).encode("utf-8", "surrogatepass"))
        return replace(self, entries=kept, left_out=left_out, digest=digest.hexdigest())


def digest_of(entries: Iterable[Entry]) -> str:
    """SHA-256 of what is known of entries, without captions that are yet to be made."""
    digest = hashlib.sha256()
    for entry in entries:
        texts = () if callable(entry.texts) else entry.texts
        known = (entry.name, entry.stamp, texts, sorted(entry.attributes.items()))
        digest.update(repr(known).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def captioned(entry: Entry, texts: Iterable[object]) -> Entry:
    """An entry with captions, one line each, without blank ones; a problem if none is left."""
    lines = (" ".join(text.split()) for text in texts if isinstance(text, str))
    kept = tuple(line for line in lines if line)
    return replace(entry, texts=kept, problem=entry.problem or ("" if kept else NO_CAPTION))


def file_entry(
    name: str, path: Path, texts: Iterable[object], attributes: Mapping[str, str] | None = None
) -> Entry:
    """The entry of an image in a file of its own."""
    stamp: tuple[int, ...] = ()
    problem = f"{NO_IMAGE}, {path} is not there"
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            stamp, problem = (status.st_size, status.st_mtime_ns), ""
    except OSError:
        pass
    entry = Entry(
        name=name, read=path.read_bytes, stamp=stamp, attributes=attributes or {}, problem=problem
    )
    return captioned(entry, texts)


def fact(value: object) -> str:
    """A column's value as text, empty for what is none; 1.0 is 1, as pandas writes ids by gaps."""
    if not isinstance(value, str | int | float) or value != value:
        return ""
    return re.sub(r"^(-?\d+)\.0+$", r"\1", str(value))


def facts(row: Mapping[str, object], *apart: str) -> dict[str, str]:
    """The columns of a row that have a value, without those apart."""
    told = {name: fact(value) for name, value in row.items() if name not in apart}
    return {name: value for name, value in told.items() if value}


def inside(name: str, where: str) -> str:
    """A name below a folder in its plain form, with "/"; ValueError says where it leads out."""
    plain = os.path.normpath(name.replace("\\", "/")).replace(os.sep, "/")
    if plain.startswith(("/", "../")) or plain == ".." or re.match("[A-Za-z]:", plain):
        raise ValueError(f"Expected a name inside the folder, found {name!r:.120} ({where}).")
    return plain


def images_below(folder: Path) -> dict[str, Path]:
    """The images in a folder and its folders, by their suffix, under their names with "/"."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                path = Path(place, name)
                found[path.relative_to(folder).as_posix()] = path
    return found


def read_text(path: Path) -> str:
    """A text file as UTF-8, with or without a byte order mark."""
    return decoded(path.read_bytes(), str(path))


def decoded(content: bytes, name: str) -> str:
    """Text in UTF-8, with or without a byte order mark."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Expected UTF-8 text in {name}, found another encoding at byte {error.start:,}; save "
            "it as UTF-8."
        ) from None


def lines_of(path: Path) -> list[str]:
    """The lines of a text file, which a line feed alone ends."""
    return [line.rstrip("\r") for line in read_text(path).split("\n")]


def columns_of(file: Path, skip: int, width: int) -> list[list[str]]:
    """The values between spaces of a table's rows behind the first few, so many in each."""
    rows = list(enumerate(map(str.split, lines_of(file)), start=1))[skip:]
    for number, row in rows:
        if row and len(row) != width:
            raise ValueError(
                f"Expected {width} columns in row {number} of {file}, found {len(row)}."
            )
    return [row for _, row in rows if row]


def regular(paths: Iterable[Path]) -> list[Path]:
    """Those of the paths that are files, sorted: what is a pipe would wait for ever."""
    return sorted(path for path in paths if path.is_file())


def named(files: Sequence[Path]) -> str:
    """Files for a message."""
    return ", ".join(map(str, files[:3])) + (f" and {len(files) - 3} more" * (len(files) > 3))


def found(path: Path, patterns: Sequence[str]) -> list[Path]:
    """A file that fits one of the patterns, or those in a folder that fit the first that any do."""
    if path.is_file():
        return [path] if any(path.match(pattern) for pattern in patterns) else []
    return next(filter(None, (regular(path.glob(pattern)) for pattern in patterns)), [])


def of_one_split(path: Path, patterns: Sequence[str]) -> list[Path]:
    """The files to read of these: `train-*` where names tell several splits apart."""
    splits: dict[str, list[Path]] = {}
    for file in [path] if path.is_file() else found(path, patterns):
        own = _SPLIT.match(file.name.removeprefix("captions_"))
        splits.setdefault(own[1] if own else "", []).append(file)
    if "train" not in splits and len(splits) != 1:
        names = named([file for files in splits.values() for file in files]) or "none"
        raise ValueError(
            f"Expected {' or '.join(patterns)} in {path}, of one split or of `train`, found "
            f"{names}; name a file."
        )
    return splits["train"] if "train" in splits else next(iter(splits.values()))


def name_of(path: Path) -> str:
    """What records at a path are called."""
    return path.stem if path.is_file() else path.resolve().name
