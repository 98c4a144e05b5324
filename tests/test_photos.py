"""The photograph sets, from drawn pictures in their official layouts and in Parquet alike."""

from __future__ import annotations

import io
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dpwg.data import is_public, open_records
from dpwg.data.files import FileRecords
from dpwg.data.official import celeba_numbers
from dpwg.data.photos import photos_folder
from dpwg.data.public_photos import public_portrait
from dpwg.data.records import group_numbers
from dpwg.data.sets import SPLITS

TRAITS = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs",
    "Big_Lips", "Big_Nose", "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair",
    "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses", "Goatee", "Gray_Hair",
    "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes",
    "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks",
    "Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat",
    "Wearing_Lipstick", "Wearing_Necklace", "Wearing_Necktie", "Young",
)  # fmt: skip
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


def encoded(image: Image.Image, form: str = "JPEG") -> bytes:
    file = io.BytesIO()
    image.save(file, form, quality=92)
    return file.getvalue()


def put(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def has(number: int, trait: int) -> bool:
    return (number + trait) % 3 == 0


def person(number: int) -> int:
    """Three persons: two of them in the training part."""
    return 2880 if number in NUMBERS["test"] else (41, 5805)[NUMBERS["train"].index(number) % 2]


def celeba_images() -> Iterator[tuple[int, Image.Image]]:
    for number in (*NUMBERS["train"], *NUMBERS["test"]):
        yield number, drawing(number, 178, 218)


def celeba_official(root: Path, images: str = "img_align_celeba", tables: str = "") -> None:
    """The drawings, and one more in the official training part that is not in the set."""
    other = next(n for n in range(1, 99) if n not in celeba_numbers("celeba-train"))
    persons, traits, parts = [], [], []
    for number, image in [*celeba_images(), (other, drawing(0, 178, 218))]:
        name = f"{number:06}.jpg"
        put(root / images / name, encoded(image))
        persons.append(f"{name} {7 if number == other else person(number)}\n")
        signs = [" 1" if has(number, k) else "-1" for k in range(len(TRAITS))]
        traits.append(f"{name} {' '.join(signs)}\n")
        parts.append(f"{name} {2 if number in NUMBERS['test'] else 0}\n")
    put(root / tables / "identity_CelebA.txt", "".join(persons))
    heading = f"{len(traits)}\n{' '.join(TRAITS)} \n"
    put(root / tables / "list_attr_celeba.txt", heading + "".join(traits))
    put(root / tables / "list_eval_partition.txt", "".join(parts))


def parquet(path: Path, rows: list[dict[str, object]], images: list[Image.Image]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    for row, image in zip(rows, images, strict=True):
        row["image"] = {"bytes": encoded(image, "WEBP"), "path": "0.webp"}
    files.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=3)


def celeba_parquet(root: Path) -> None:
    pictures = dict(celeba_images())
    for split, numbers in NUMBERS.items():
        rows: list[dict[str, object]] = []
        for number in numbers:
            row = {"celeba_number": number, "identity": person(number), "hq_caption": "A person."}
            rows.append(row | {name: has(number, k) for k, name in enumerate(TRAITS)})
        crops = [pictures[n].crop((0, 20, 178, 198)).resize((128, 128)) for n in numbers]
        for part, end in ((0, 5), (1, None)):
            chosen = slice(5 * part, end)
            parquet(root / f"celeba-{split}-{part:03}.parquet", rows[chosen], crops[chosen])


def utkface_official(root: Path, count: int = 45) -> None:
    for k in range(count):
        name = f"{k + 1}_{k % 2}_{k % 5}_2017010915040{k:04}.jpg.chip.jpg"
        put(root / name, encoded(drawing(k, 128, 128)))
    put(root / "61_1_20170109142408075.jpg.chip.jpg", encoded(drawing(0, 128, 128)))


def tiny_official(root: Path) -> None:
    put(root / "words.txt", "".join(f"{wnid}\t{label}\n" for wnid, label in WORDS.items()))
    annotations = ""
    for wnid in WORDS:
        for k in range(6):
            image = encoded(drawing(k, 64, 64))
            put(root / "train" / wnid / "images" / f"{wnid}_{k}.JPEG", image)
            if k < 2:
                name = f"val_{len(annotations)}.JPEG"
                put(root / "val" / "images" / name, image)
                annotations += f"{name}\t{wnid}\t0\t0\t62\t62\n"
    put(root / "val" / "val_annotations.txt", annotations)


def told(records: FileRecords) -> list[tuple[object, ...]]:
    return [(e.name, e.captions, dict(e.attributes)) for e in records.entries]


def as_parquet(folder: Path, stem: str, names: list[str], columns: dict[str, type]) -> None:
    """What is read of official files, written as Parquet in the order of its numbers."""
    sets = [open_records(name) for name in names]
    found = sorted(
        (record for records in sets for record in map(records.__getitem__, range(len(records)))),
        key=lambda record: int(record.attributes["number"]),
    )
    rows = [{n: kind(r.attributes[n]) for n, kind in columns.items()} for r in found]
    parquet(folder / f"{stem}-000.parquet", rows, [Image.fromarray(r.image()) for r in found])


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
    packed = photos.parent / "packed"
    packed.mkdir()
    celeba_parquet(packed)
    monkeypatch.setenv("DPWG_PHOTOS", str(packed))
    for split, numbers in NUMBERS.items():
        records = open_records(f"celeba-{split}")
        assert told(records) == told(official[split])
        assert [int(e.attributes["number"]) for e in records.entries] == numbers
        assert records.name == official[split].name == f"celeba-{split}"
        for index in range(len(numbers)):
            near = records[index].image(128).astype(int) - official[split][index].image(128)
            assert np.abs(near).mean() < 3


def test_celeba_records_know_person_and_traits_and_have_ten_captions(photos: Path) -> None:
    celeba_official(photos)
    records = open_records("celeba-train")
    first = records[0]
    assert first.name == f"celeba-train:{NUMBERS['train'][0]}"
    assert first.attributes["person"] == "41"
    assert [first.attributes[name] == "1" for name in TRAITS] == [
        has(NUMBERS["train"][0], k) for k in range(40)
    ]
    assert len(first.captions) == 10
    assert group_numbers(records, "person") == [0, 1] * 4
    assert set(group_numbers(open_records("celeba-test"), "person")) == {0}


def test_celeba_is_cropped_to_rows_20_to_197(photos: Path) -> None:
    celeba_official(photos)
    image = Image.new("RGB", (178, 218), "black")
    image.paste("white", (0, 0, 178, 20))
    image.paste("red", (0, 20, 178, 28))
    image.paste("blue", (0, 190, 178, 198))
    image.paste("white", (0, 198, 178, 218))
    put(photos / "img_align_celeba" / f"{NUMBERS['train'][0]:06}.jpg", encoded(image))
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
    put(photos / "img_align_celeba" / name, encoded(drawing(1, 178, 178)))
    with pytest.raises(ValueError, match=rf"\(178, 218\) pixels in .*{name}"):
        open_records("celeba-train")[1]
    put(photos / "img_align_celeba" / name, b"no picture")
    kept = open_records("celeba-train", skip_broken=True)
    assert (len(kept), list(kept.left_out)) == (7, [f"celeba-train:{NUMBERS['train'][1]}"])
    table = photos / "identity_CelebA.txt"
    put(table, "".join(table.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(ValueError, match=r"000001\.jpg in .*identity_CelebA\.txt"):
        open_records("celeba-train")
    table.unlink()
    with pytest.raises(FileNotFoundError, match=r"Expected identity_CelebA\.txt in .*Anno"):
        open_records("celeba-train")


# UTKFace and Tiny-ImageNet


def test_every_twentieth_face_of_utkface_is_for_the_test(photos: Path) -> None:
    utkface_official(photos / "UTKFace")
    train, test = open_records("utkface-train"), open_records("utkface-test")
    assert [e.name for e in test.entries] == ["utkface-test:19", "utkface-test:39"]
    numbers = [int(e.attributes["number"]) for e in train.entries]
    assert numbers == [n for n in range(45) if n not in (19, 39)]
    for entry in (*train.entries, *test.entries):
        age = int(entry.attributes["age"])
        assert entry.attributes["gender"] == ("man", "woman")[(age - 1) % 2]
        assert len(entry.captions) == 10
        near = Image.open(io.BytesIO(entry.read()))
        assert np.abs(np.asarray(near).astype(int) - drawing(age - 1, 128, 128)).mean() < 3


def test_the_first_faces_are_not_the_youngest(photos: Path) -> None:
    utkface_official(photos)
    ages = [int(e.attributes["age"]) for e in open_records("utkface-train", count=10).entries]
    assert max(ages) > 22 > min(ages)


def test_tiny_imagenet_has_the_labels_of_its_words(photos: Path) -> None:
    tiny_official(photos / "tiny-imagenet-200")
    train, val = open_records("tiny-imagenet-train"), open_records("tiny-imagenet-val")
    assert (len(train), len(val), train[0].image().shape) == (12, 4, (64, 64, 3))
    for entry in (*train.entries, *val.entries):
        assert WORDS[entry.attributes["wnid"]] == entry.attributes["label"]
        assert len(entry.captions) == 10
    assert [e.attributes["number"] for e in train.entries] == [str(n) for n in range(12)]
    put(photos / "tiny-imagenet-200" / "words.txt", "n01443537\tgoldfish\n")
    with pytest.raises(ValueError, match=r"Expected n02124075 in .*words\.txt"):
        open_records("tiny-imagenet-train")


UTKFACE_COLUMNS = {"age": int, "gender": str}
TINY_COLUMNS = {"wnid": str, "label": str}


@pytest.mark.parametrize(
    ("stem", "names", "make", "columns"),
    [
        ("utkface", ["utkface-train", "utkface-test"], utkface_official, UTKFACE_COLUMNS),
        ("tiny-imagenet-train", ["tiny-imagenet-train"], tiny_official, TINY_COLUMNS),
        ("tiny-imagenet-val", ["tiny-imagenet-val"], tiny_official, TINY_COLUMNS),
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
        assert records.form == "parquet"
        assert told(records) == told(other)
        near = records[1].image(128).astype(int) - other[1].image(128)
        assert np.abs(near).mean() < 3


# All of them


def test_a_folder_that_is_missing_or_lacks_a_set_says_what_belongs_there(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert photos_folder() == photos
    for name, mark in [
        ("celeba-train", r"celeba-\*\.parquet or img_align_celeba .*celeba or CelebA"),
        ("utkface-test", "utkface-.*UTKFace"),
        ("tiny-imagenet-val", r"tiny-imagenet-.*words\.txt"),
    ]:
        with pytest.raises(FileNotFoundError, match=mark):
            open_records(name)
    for value in ("", str(photos / "no")):
        monkeypatch.setenv("DPWG_PHOTOS", value)
        with pytest.raises(
            FileNotFoundError, match=r"set DPWG_PHOTOS .*img_align_celeba/.*UTKFace"
        ):
            open_records("celeba-train")


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
        assert tuple(traits) == TRAITS
        made.append(number)
        return (f"number {number}",)

    monkeypatch.setattr("dpwg.data.photos.celeba_captions", captions)
    records = open_records("celeba-train")
    group_numbers(records, "person")
    assert made == NUMBERS["train"][:1]  # the sample in the digest
    assert records[3].captions == (f"number {NUMBERS['train'][3]}",)
    assert made == [NUMBERS["train"][0], NUMBERS["train"][3]]
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
    file = copy / "celeba-test-000.parquet"
    content = file.read_bytes()
    image = first.entries[0].read()
    assert content.count(image) == 1
    file.write_bytes(content.replace(image, image[:-1] + bytes([image[-1] ^ 1])))
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


def portrait(seed: int) -> np.ndarray:
    face = np.full((128, 128, 3), (200, 120, 90), np.uint8)
    face[44:50, 30:98] = 0  # the eyes
    return public_portrait(face, np.asarray(drawing(3, 64, 64)), random.Random(seed))


def test_a_portraits_face_lies_where_those_of_celeba_do() -> None:
    for seed in range(20):
        picture = portrait(seed).astype(int)
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
