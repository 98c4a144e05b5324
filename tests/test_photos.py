"""The photograph sets, from drawn pictures in their official layouts and in Parquet alike."""

from __future__ import annotations

import itertools
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from pictures import TRAITS, encoded, put
from PIL import Image, ImageDraw

from dpwg.data import is_public, open_records
from dpwg.data.files import FileRecords
from dpwg.data.official import celeba_numbers
from dpwg.data.public_photos import public_portrait
from dpwg.data.records import group_numbers
from dpwg.data.sets import SPLITS

NUMBERS = {"train": celeba_numbers("celeba-train")[:8], "test": celeba_numbers("celeba-test")[:4]}
WORDS = {"n01443537": "goldfish, Carassius auratus", "n02124075": "Egyptian cat"}


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    monkeypatch.setenv("DPWG_PHOTOS", str(folder))
    return folder


def drawing(number: int, width: int, height: int) -> Image.Image:
    """A plain face whose colours follow from a number."""
    ground, skin = [(int(c * 200), 90, 140) for c in np.random.default_rng(number).random(2)]
    image = Image.new("RGB", (width, height), ground)
    draw = ImageDraw.Draw(image)
    draw.ellipse((width // 4, height // 4, width * 3 // 4, height * 4 // 5), fill=skin)
    return image


def has(number: int, trait: int) -> bool:
    return (number + trait) % 3 == 0


def person(number: int) -> int:
    """Three persons: two of them in the training part."""
    return 2880 if number in NUMBERS["test"] else (41, 5805)[NUMBERS["train"].index(number) % 2]


def celeba_drawings(split: str) -> dict[int, Image.Image]:
    return {number: drawing(number, 178, 218) for number in NUMBERS[split]}


def celeba_official(root: Path, images: str = "img_align_celeba", tables: str = "") -> None:
    """The drawings, and one more in the official training part that is not in the set."""
    other = next(n for n in range(1, 99) if n not in celeba_numbers("celeba-train"))
    drawn = celeba_drawings("train") | celeba_drawings("test") | {other: drawing(0, 178, 218)}
    lines: dict[str, str] = {"identity_CelebA.txt": "", "list_eval_partition.txt": ""}
    traits = f"{len(drawn)}\n{' '.join(TRAITS)} \n"
    for number, image in drawn.items():
        name = f"{number:06}.jpg"
        put(root / images / name, encoded(image, "JPEG", quality=92))
        lines["identity_CelebA.txt"] += f"{name} {7 if number == other else person(number)}\n"
        lines["list_eval_partition.txt"] += f"{name} {2 if number in NUMBERS['test'] else 0}\n"
        signs = [" 1" if has(number, k) else "-1" for k in range(len(TRAITS))]
        traits += f"{name} {' '.join(signs)}\n"
    for table, text in (lines | {"list_attr_celeba.txt": traits}).items():
        put(root / tables / table, text)


def parquet(path: Path, rows: list[dict[str, object]], images: list[Image.Image]) -> None:
    for row, image in zip(rows, images, strict=True):
        row["image"] = {"bytes": encoded(image, "WEBP", quality=92), "path": "0.webp"}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=3)


def celeba_parquet(root: Path) -> None:
    for split, numbers in NUMBERS.items():
        rows: list[dict[str, object]] = [
            {"celeba_number": number, "identity": person(number), "hq_caption": "A person."}
            | {name: has(number, k) for k, name in enumerate(TRAITS)}
            for number in numbers
        ]
        crops = [
            image.crop((0, 20, 178, 198)).resize((128, 128))
            for image in celeba_drawings(split).values()
        ]
        for part in (slice(5), slice(5, None)):
            parquet(root / f"celeba-{split}-{part.start or 0:03}.parquet", rows[part], crops[part])


def utkface_official(root: Path) -> None:
    for k in range(45):
        name = f"{k + 1}_{k % 2}_{k % 5}_2017010915040{k:04}.jpg.chip.jpg"
        put(root / name, encoded(drawing(k, 128, 128), "JPEG"))
    put(root / "61_1_20170109142408075.jpg.chip.jpg", encoded(drawing(0, 128, 128), "JPEG"))


def tiny_official(root: Path) -> None:
    put(root / "words.txt", "".join(f"{wnid}\t{label}\n" for wnid, label in WORDS.items()))
    for wnid, k in itertools.product(WORDS, range(6)):
        image = encoded(drawing(k, 64, 64), "JPEG")
        put(root / "train" / wnid / "images" / f"{wnid}_{k}.JPEG", image)
    names = {f"val_{k}.JPEG": wnid for k, wnid in enumerate([*WORDS, *WORDS])}
    for name in names:
        put(root / "val" / "images" / name, image)
    lines = [f"{name}\t{wnid}\t0\t0\t62\t62\n" for name, wnid in names.items()]
    put(root / "val" / "val_annotations.txt", "".join(lines))


def told(records: FileRecords) -> list[tuple[object, ...]]:
    return [(e.name, e.captions, dict(e.attributes)) for e in records.entries]


def as_parquet(folder: Path, stem: str, names: list[str], columns: dict[str, type]) -> None:
    """What is read of official files, written as Parquet in the order of its numbers."""
    found = [record for name in names for record in open_records(name)]
    found.sort(key=lambda record: int(record.attributes["number"]))
    rows = [{n: kind(r.attributes[n]) for n, kind in columns.items()} for r in found]
    parquet(folder / f"{stem}-000.parquet", rows, [Image.fromarray(r.image()) for r in found])


def near(one: FileRecords, other: FileRecords) -> bool:
    pairs = [(a.image(128).astype(int), b.image(128)) for a, b in zip(one, other, strict=True)]
    return all(np.abs(a - b).mean() < 3 for a, b in pairs)


# CelebA


@pytest.mark.parametrize(
    ("part", "images", "tables"),
    [
        ("", "img_align_celeba", ""),
        ("celeba", "img_align_celeba/img_align_celeba", "Anno"),
        ("CelebA", "img_align_celeba", "Anno"),
    ],
)
def test_celeba_has_the_same_records_from_official_files_and_from_parquet(
    photos: Path, monkeypatch: pytest.MonkeyPatch, part: str, images: str, tables: str
) -> None:
    celeba_official(photos / part, images, tables)
    official = {split: open_records(f"celeba-{split}") for split in NUMBERS}
    first = official["train"][0]
    assert first.name == f"celeba-train:{NUMBERS['train'][0]}"
    assert [first.attributes[name] == "1" for name in TRAITS] == [
        has(NUMBERS["train"][0], k) for k in range(40)
    ]
    assert (first.attributes["person"], len(first.captions)) == ("41", 10)
    assert group_numbers(official["train"], "person") == [0, 1] * 4
    packed = photos.parent / "packed"
    packed.mkdir()
    celeba_parquet(packed)
    monkeypatch.setenv("DPWG_PHOTOS", str(packed))
    for split, numbers in NUMBERS.items():
        records = open_records(f"celeba-{split}")
        assert told(records) == told(official[split])
        assert [int(e.attributes["number"]) for e in records.entries] == numbers
        assert records.name == official[split].name == f"celeba-{split}"
        assert near(records, official[split])


def test_celeba_is_cropped_to_rows_20_to_197(photos: Path) -> None:
    celeba_official(photos)
    image = Image.new("RGB", (178, 218), "white")
    image.paste("red", (0, 20, 178, 28))
    image.paste("blue", (0, 190, 178, 198))
    name = f"{NUMBERS['train'][0]:06}.jpg"
    put(photos / "img_align_celeba" / name, encoded(image, "JPEG", quality=92))
    pixels = open_records("celeba-train")[0].image().astype(int)
    assert pixels.shape == (178, 178, 3)
    assert np.abs(pixels[:4] - (255, 0, 0)).max() < 60
    assert np.abs(pixels[-4:] - (0, 0, 255)).max() < 60


def test_the_numbers_of_celeba_are_five_images_a_person_of_the_official_splits() -> None:
    train, test = celeba_numbers("celeba-train"), celeba_numbers("celeba-test")
    assert (len(train), len(test)) == (5 * 7_508, 5 * 928)
    assert (train[0], max(train) <= 162_770, min(test) > 182_637) == (1, True, True)
    assert train == sorted(train)


def test_celeba_files_that_do_not_fit_are_named(photos: Path) -> None:
    celeba_official(photos)
    name = f"{NUMBERS['train'][1]:06}.jpg"
    file = photos / "img_align_celeba" / name
    put(file, encoded(drawing(1, 178, 178)))
    with pytest.raises(ValueError, match=rf"\(178, 218\) pixels in .*{name}"):
        open_records("celeba-train")[1]
    put(file, b"no picture")
    kept = open_records("celeba-train", skip_broken=True)
    assert (len(kept), list(kept.left_out)) == (7, [f"celeba-train:{NUMBERS['train'][1]}"])
    table = photos / "identity_CelebA.txt"
    put(table, "".join(table.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(ValueError, match=r"000001\.jpg in .*identity_CelebA\.txt"):
        open_records("celeba-train")
    table.unlink()
    with pytest.raises(FileNotFoundError, match=r"identity_CelebA\.txt"):
        open_records("celeba-train")


# UTKFace and Tiny-ImageNet


def test_every_twentieth_face_of_utkface_is_for_the_test(photos: Path) -> None:
    utkface_official(photos / "UTKFace")
    train, test = open_records("utkface-train"), open_records("utkface-test")
    assert [e.name for e in test.entries] == ["utkface-test:19", "utkface-test:39"]
    numbers = [int(e.attributes["number"]) for e in train.entries]
    assert numbers == [n for n in range(45) if n not in (19, 39)]
    ages = [int(record.attributes["age"]) for record in (*train, *test)]
    assert max(ages[:10]) > 22 > min(ages[:10])  # the first are not the youngest
    for record, age in zip((*train, *test), ages, strict=True):
        assert record.attributes["gender"] == ("man", "woman")[(age - 1) % 2]
        assert len(record.captions) == 10
        assert np.abs(record.image().astype(int) - drawing(age - 1, 128, 128)).mean() < 3


def test_tiny_imagenet_has_the_labels_of_its_words(photos: Path) -> None:
    tiny_official(photos / "tiny-imagenet-200")
    train, val = open_records("tiny-imagenet-train"), open_records("tiny-imagenet-val")
    assert (len(train), len(val), train[0].image().shape) == (12, 4, (64, 64, 3))
    for entry in (*train.entries, *val.entries):
        assert WORDS[entry.attributes["wnid"]] == entry.attributes["label"]
        assert len(entry.captions) == 10
    assert [e.attributes["number"] for e in train.entries] == [str(n) for n in range(12)]
    put(photos / "tiny-imagenet-200" / "words.txt", "n01443537\tgoldfish\n")
    with pytest.raises(ValueError, match=r"n02124075 in .*words\.txt"):
        open_records("tiny-imagenet-train")


@pytest.mark.parametrize(
    ("stem", "names", "make", "columns"),
    [
        (
            "utkface",
            ["utkface-train", "utkface-test"],
            utkface_official,
            {"age": int, "gender": str},
        ),
        (
            "tiny-imagenet-train",
            ["tiny-imagenet-train"],
            tiny_official,
            {"wnid": str, "label": str},
        ),
    ],
)
def test_public_rows_in_one_order_are_the_same_records_from_both(
    photos: Path, stem: str, names: list[str], make, columns: dict[str, type]
) -> None:
    make(photos)
    official = [open_records(name) for name in names]
    as_parquet(photos, stem, names, columns)
    for name, other in zip(names, official, strict=True):
        records = open_records(name)
        assert (records.form, told(records)) == ("parquet", told(other))
        assert near(records, other)


# All of them


def test_a_folder_that_is_missing_or_lacks_a_set_says_what_belongs_there(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, name, mark in [
        (photos, "celeba-train", r"celeba-\*\.parquet or img_align_celeba"),
        (photos, "utkface-test", "utkface-.*UTKFace"),
        (photos, "tiny-imagenet-val", r"tiny-imagenet-.*words\.txt"),
        ("", "celeba-train", "DPWG_PHOTOS .*img_align_celeba/.*UTKFace"),
        (photos / "no", "celeba-train", "DPWG_PHOTOS .*img_align_celeba/.*UTKFace"),
    ]:
        monkeypatch.setenv("DPWG_PHOTOS", str(folder))
        with pytest.raises(FileNotFoundError, match=mark):
            open_records(name)


@pytest.mark.parametrize("make", [celeba_official, celeba_parquet])
def test_a_count_takes_the_first_records(photos: Path, make) -> None:
    make(photos)
    every, first = open_records("celeba-train"), open_records("celeba-train", count=3)
    assert told(first) == told(every)[:3]
    assert first.digest != every.digest
    for count in (0, -1, 9):
        with pytest.raises(ValueError, match=rf"count={count} from 1 to the number"):
            open_records("celeba-train", count=count)
    with pytest.raises(ValueError, match="Expected no count=1"):
        open_records(str(photos), count=1)


def test_captions_are_made_when_they_are_asked_for(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    celeba_official(photos)
    made: list[int] = []

    def captions(number: int, traits: dict[str, bool]) -> tuple[str, ...]:
        assert list(traits) == list(TRAITS)
        made.append(number)
        return (f"number {number}",)

    monkeypatch.setattr("dpwg.data.photos.celeba_captions", captions)
    records = open_records("celeba-train")
    group_numbers(records, "person")
    assert records[3].captions == (f"number {NUMBERS['train'][3]}",)
    assert made == [NUMBERS["train"][0], NUMBERS["train"][3]]  # the first is in the digest
    monkeypatch.setattr("dpwg.data.photos.celeba_captions", lambda number, traits: ("another",))
    assert open_records("celeba-train").digest != records.digest


def test_a_copy_of_the_parquet_files_is_the_same_set_until_an_image_changes(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    celeba_parquet(photos)
    first = open_records("celeba-test")
    copy = photos.parent / "copy"
    shutil.copytree(photos, copy, copy_function=shutil.copyfile)
    monkeypatch.setenv("DPWG_PHOTOS", str(copy))
    assert open_records("celeba-test").digest == first.digest
    file, image = copy / "celeba-test-000.parquet", first.entries[0].read()
    content = file.read_bytes()
    put(file, content.replace(image, image[:-1] + bytes([image[-1] ^ 1])))
    assert open_records("celeba-test").digest != first.digest


def test_celeba_is_never_public_and_no_folder_takes_the_name_of_a_public_set(
    photos: Path, image_folder: Path
) -> None:
    public = {name for name in SPLITS if is_public(name)}
    assert {name.rpartition("-")[0] for name in public} >= {"public", "utkface", "tiny-imagenet"}
    assert not any(name.startswith(("celeba", "faces", "tuning", "fashion")) for name in public)
    assert not is_public("my-photos")
    shutil.copytree(image_folder, photos / "utkface-train")
    with pytest.raises(ValueError, match="have a name of its own, found 'utkface-train'"):
        open_records(str(photos / "utkface-train"))


# Portraits


def test_a_portraits_face_lies_where_those_of_celeba_do() -> None:
    drawn = np.full((128, 128, 3), (200, 120, 90), np.uint8)
    drawn[44:50, 30:98] = 0  # the eyes
    ground = np.asarray(drawing(3, 64, 64))
    for seed in range(20):
        picture = public_portrait(drawn, ground, random.Random(seed)).astype(int)
        face = np.abs(picture - (200, 120, 90)).sum(-1) < 12
        rows, columns = np.flatnonzero(face.any(1)), np.flatnonzero(face.any(0))
        assert 58 <= rows[-1] - rows[0] + 1 <= 80
        assert rows[-1] < 124
        assert abs((columns[0] + columns[-1]) / 2 - 63.5) < 6
        dark = np.flatnonzero(picture[:, 60:68].sum((1, 2)) < 200 * 8)
        assert abs(dark.mean() - 66) < 5


def test_half_of_the_portraits_are_mirrored_and_half_of_the_backgrounds_blurred() -> None:
    face = np.full((128, 128, 3), 90, np.uint8)
    ground = np.zeros((128, 128, 3), np.uint8)
    ground[:8:2, :64] = 255
    seen = {"left": 0, "sharp": 0}
    for seed in range(200):
        top = public_portrait(face, ground, random.Random(seed))[:8].astype(int)
        seen["left"] += top[:, :50].mean() > top[:, 78:].mean()
        seen["sharp"] += np.abs(np.diff(top[..., 0], axis=0)).max() > 100
    assert all(70 < times < 130 for times in seen.values())
