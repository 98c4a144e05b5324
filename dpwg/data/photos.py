"""Photographs: CelebA, which is sensitive, and UTKFace and Tiny-ImageNet, which are public.

Each set is read from its official layout, or from Parquet files made of that. Liu et al. 2015,
arXiv 1411.7766, shown from row 20 to 197 of its aligned images; Zhang et al. 2017, arXiv
1702.08423; Tiny-ImageNet is Stanford's cut of ImageNet.

CelebA's records are the same from both: five images of each of 7,508 persons, and for the test of
928 others, in the order of the images' own numbers, which `photo_numbers.json` lists. The other two
cannot promise this, as their Parquet files do not tell the official names: from the official files
come other records of the same kind, in an order drawn from their names, of Tiny-ImageNet as many
unless `count` says otherwise. Of UTKFace's folder all files are read, also the 708 that its Parquet
leaves out because they are there twice or resemble an image of CelebA.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from dpwg.data.dataset import REAL_PEOPLE, DataSet
from dpwg.data.files import Entry, FileRecords, digest_of
from dpwg.data.grammar import celeba_captions, tiny_imagenet_captions, utkface_captions
from dpwg.data.official import Row, official_rows

VARIABLE = "DPWG_PHOTOS"
UTKFACE_TEST = 20
"""Of this many records in a row, the last is one of `utkface-test`."""
_AT_MOST = {"tiny-imagenet-train": 32_000, "tiny-imagenet-val": 3_000}
SAMPLED = 100
"""Of this many records, one has its captions in the digest."""


def photos_folder() -> Path:
    """The folder of the photograph sets, DPWG_PHOTOS; FileNotFoundError says what to put there."""
    named = os.environ.get(VARIABLE, "")
    if not (named and Path(named).is_dir()):
        raise FileNotFoundError(
            f"Expected {VARIABLE}={named!r} to be a folder: set {VARIABLE} to the one that has "
            "CelebA (img_align_celeba/, list_attr_celeba.txt, identity_CelebA.txt), UTKFace/ or "
            "tiny-imagenet-200/, or Parquet files as celeba-train-*.parquet."
        )
    return Path(named)


def open_photos(kind: str, split: str, count: int | None = None) -> FileRecords:
    """The records of a split of a set below, or the first `count`, out of `photos_folder`.

    Parquet files come before an official layout where both are there; of that, records whose image
    is missing are left out. Attributes are `number` and, by set: `person` and CelebA's own 40 ("1"
    or "0"); `age` and `gender`; `label` and `wnid`. Captions are made when they are asked for: all
    of CelebA's take 10 s. ValueError for a `count` that is not there.

    The digest covers names, attributes, a sample of the captions, and of Parquet the images, which
    stay in memory: a copy elsewhere is the same set. Of official files it covers size and time.
    """
    folder, name = photos_folder(), f"{kind}-{split}"
    stem = kind if kind == "utkface" else name
    files = sorted(folder.glob(f"{stem}-*.parquet"))
    rows = _parquet_rows(files) if files else official_rows(folder, kind, split)
    numbered = (
        (number, row)
        for number, row in enumerate(rows)
        if kind != "utkface" or (split == "test") == (number % UTKFACE_TEST == UTKFACE_TEST - 1)
    )
    most = _AT_MOST.get(name) if count is None else max(count, 0)
    entries = [_entry(kind, name, *row) for row in itertools.islice(numbered, most)]
    if count is not None and not 1 <= count == len(entries):
        raise ValueError(f"Expected count={count} from 1 to the number of records of {name}.")
    sample = [entry.captions for entry in entries[::SAMPLED]]
    return FileRecords(
        name,
        entries,
        form="parquet" if files else kind,
        source=f"{folder}/{stem}-*.parquet" if files else str(folder),
        digest=hashlib.sha256(f"{digest_of(entries)} {sample}".encode()).hexdigest(),
    )


def _entry(kind: str, name: str, position: int, row: Row) -> Entry:
    """A record; its attributes are its columns, truths as "1" or "0"."""
    attributes = {"number": str(position)}
    for column, value in row.columns.items():
        known = {"celeba_number": "number", "identity": "person"}.get(column, column)
        attributes[known] = str(int(value) if isinstance(value, bool) else value)
    return Entry(
        name=f"{name}:{attributes['number']}",
        read=row.read,
        stamp=row.stamp,
        texts=functools.partial(_captions, kind, attributes),
        attributes=attributes,
    )


def _captions(kind: str, told: Mapping[str, str]) -> tuple[str, ...]:
    number = int(told["number"])
    if kind == "utkface":
        return utkface_captions(number, int(told["age"]), told["gender"])
    if kind == "tiny-imagenet":
        return tiny_imagenet_captions(number, told["label"])
    traits = {name: text == "1" for name, text in told.items() if name not in ("number", "person")}
    return celeba_captions(number, traits)


def _parquet_rows(files: Iterable[Path]) -> Iterator[Row]:
    from pyarrow import parquet

    for path in files:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1_000):
                for columns in batch.to_pylist():
                    content = columns.pop("image")["bytes"]
                    columns.pop("hq_caption", None)  # the official files do not tell it
                    stamp = int.from_bytes(hashlib.sha256(content).digest()[:8])
                    yield Row(columns, functools.partial(bytes, content), (stamp,))


def _plausible() -> dict[str, bool]:
    """CelebA's attributes of somebody who does not exist; those left out are false.

    The odds are made up: counted in the records, they would be something that no noise covers.
    """

    def chance(odds: float) -> bool:
        return random.random() < odds

    man, young = chance(0.5), chance(0.7)
    hair = ["Black_Hair", "Blond_Hair", "Brown_Hair"]
    if not young:
        hair += ["Gray_Hair", "Gray_Hair", *(["Bald"] if man else [])]
    odds = {random.choice(hair): 0.95, "Smiling": 0.5, "Eyeglasses": 0.2, "Wearing_Hat": 0.1}
    odds |= {random.choice(["Straight_Hair", "Wavy_Hair"]): 0.5, "Bangs": 0.15}
    odds |= {"Mouth_Slightly_Open": 0.4, "Oval_Face": 0.2, "Pale_Skin": 0.05}
    if man:
        odds |= {random.choice(["Goatee", "Mustache", "5_o_Clock_Shadow", "No_Beard"]): 0.8}
        odds |= {"Wearing_Necktie": 0.2}
    else:
        odds |= {"No_Beard": 1, "Heavy_Makeup": 0.3, "Wearing_Lipstick": 0.4}
        odds |= {"Wearing_Earrings": 0.3, "Wearing_Necklace": 0.2}
    found = {name for name, odd in odds.items() if chance(odd)}
    if found & {"Bald", "Wearing_Hat"}:
        found -= {"Straight_Hair", "Wavy_Hair", "Bangs"}
    return {"Male": man, "Young": young} | dict.fromkeys(found, True)


CELEBA = DataSet(
    name="celeba",
    title="CelebA: photographs of people",
    splits={"train": None, "test": None},
    open=functools.partial(open_photos, "celeba"),
    hidden=REAL_PEOPLE,
    examples="captions-celeba.txt",
    variations=(
        "a smiling woman with blond hair",
        "a smiling woman with black hair",
        "a smiling woman with blond hair and glasses",
        "a serious woman with blond hair",
        "a smiling man with blond hair",
    ),
    draw=lambda: random.choice(celeba_captions(random.getrandbits(31), _plausible())),
    reranker="celeba/reranker",
    unit="person",
    measures=("attributes",),
    terms="CelebA's terms: non-commercial research",
)
UTKFACE = DataSet(
    name="utkface",
    splits={"train": None, "test": None},
    open=functools.partial(open_photos, "utkface"),
    public=True,
    terms="UTKFace's terms: non-commercial research",
)
TINY_IMAGENET = DataSet(
    name="tiny-imagenet",
    splits={"train": None, "val": None},
    open=functools.partial(open_photos, "tiny-imagenet"),
    public=True,
    terms="ImageNet's terms: non-commercial research and education",
)
