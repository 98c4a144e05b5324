"""Data sets as their sites give them, made here in the official layouts, tiny."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from dpwg.data import fashion, open_records
from dpwg.data.check import check_records
from dpwg.data.files import FileRecords
from dpwg.data.formats import open_files
from dpwg.data.records import MAX_CAPTION_CHARACTERS, group_numbers, shared_images

COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30)]


def picture(index: int, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 14), COLOURS[index]).save(file, form)
    return file.getvalue()


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def shows(records: FileRecords, index: int, colour: int) -> bool:
    pixels = records[index].image(8)
    return bool((np.abs(pixels.astype(int) - COLOURS[colour]) < 12).all())


# MS-COCO


def coco(root: Path, captions: tuple[int, ...] = (5, 6, 5), split: str = "train2017") -> Path:
    """Files of cocodataset.org: ids are not positions, annotations in any order."""
    ids = [391895, 9, 522418, 184613][: len(captions)]
    images = [
        {"license": 3, "file_name": f"{i:012}.jpg", "height": 14, "width": 20, "id": i} for i in ids
    ]
    annotations = [
        {"image_id": own, "id": 1000 * own + k, "caption": f"Image {own} said {k}. "}
        for k in range(max(captions))
        for own, count in zip(ids, captions, strict=True)
        if k < count
    ]
    for index, own in enumerate(ids):
        put(root / split / f"{own:012}.jpg", picture(index, "JPEG"))
    table = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
    put(root / "annotations" / f"captions_{split}.json", json.dumps(table))
    return root


def test_coco_is_one_record_an_image_with_all_its_captions(tmp_path: Path) -> None:
    coco(tmp_path / "coco", (5, 6, 5))
    records = open_records(str(tmp_path / "coco"))
    assert (records.form, records.name, len(records)) == ("coco", "coco-train2017", 3)
    assert [len(records[i].captions) for i in range(3)] == [5, 6, 5]
    assert records[1].captions[5] == "Image 9 said 5."
    assert records[1].name == "000000000009.jpg"
    assert all(shows(records, index, index) for index in range(3))


def test_of_several_splits_train_is_read_and_a_file_names_another(tmp_path: Path) -> None:
    coco(tmp_path, (5, 5, 5))
    coco(tmp_path, (5, 7), "val2017")
    assert open_files(str(tmp_path)).name.endswith("-train2017")
    validation = open_files(f"{tmp_path}/annotations/captions_val2017.json")
    assert (validation.form, len(validation)) == ("coco", 2)
    coco(tmp_path, (5,), "train2014")
    with pytest.raises(ValueError, match=r"captions_train2014.json.*train2017.json"):
        open_files(str(tmp_path))


def test_a_coco_image_without_caption_or_file_is_missing(tmp_path: Path) -> None:
    coco(tmp_path, (5, 0, 5))
    (tmp_path / "train2017" / f"{522418:012}.jpg").unlink()
    problems = {e.name: e.problem for e in open_files(str(tmp_path)).entries if e.problem}
    assert problems[f"{9:012}.jpg"] == "no caption"
    assert problems[f"{522418:012}.jpg"].startswith("no image")
    with pytest.raises(ValueError, match=r"2 of 3 have none, first 000000000009.jpg: no caption"):
        open_records(str(tmp_path))
    kept = open_records(str(tmp_path), skip_broken=True)
    assert (len(kept), list(kept.left_out)) == (1, [f"{9:012}.jpg", f"{522418:012}.jpg"])


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t["images"][0].update(file_name="../../secret.jpg"),
        lambda t: t["images"][0].update(file_name="/etc/passwd"),
        lambda t: t["images"][0].update(file_name=7),
        lambda t: t["annotations"][0].update(image_id=7),
        lambda t: t["annotations"][0].pop("caption"),
        lambda t: t["images"].append(t["images"][0]),
        lambda t: t.pop("annotations"),
        lambda t: t.update(images=None),
        lambda t: "[" * 100_000,
        lambda t: "{",
        lambda t: b"\xff\xfe",
    ],
)
def test_coco_files_that_do_not_fit_are_refused_by_name(tmp_path: Path, change) -> None:
    file = coco(tmp_path) / "annotations" / "captions_train2017.json"
    table = json.loads(file.read_text())
    changed = change(table)
    put(file, changed if isinstance(changed, str | bytes) else json.dumps(table))
    with pytest.raises(ValueError, match=r"captions_train2017\.json"):
        open_files(str(tmp_path))


# MM-CelebA-HQ


def celeba(root: Path, images: str = "image", texts: str = "text/celeba-caption") -> Path:
    """Ten captions a file; numbers without zeros, so that 10 sorts before 2 as text."""
    for index, number in enumerate((0, 2, 10)):
        put(root / images / f"{number}.jpg", picture(index, "JPEG"))
        lines = "".join(f"This person {number} has trait {k}.\n" for k in range(10))
        put(root / texts / f"{number}.txt", lines)
    return root


@pytest.mark.parametrize(
    ("images", "texts"),
    [
        ("image", "text/celeba-caption"),
        ("image/images", "text/celeba-caption"),
        ("CelebA-HQ-img", "celeba-caption"),
        ("images", "text"),
    ],
)
def test_celeba_has_ten_captions_an_image_in_the_order_of_its_numbers(
    tmp_path: Path, images: str, texts: str
) -> None:
    records = open_records(str(celeba(tmp_path, images, texts)))
    assert (records.form, len(records)) == ("celeba", 3)
    assert [records[i].name for i in range(3)] == ["0.jpg", "2.jpg", "10.jpg"]
    assert [len(records[i].captions) for i in range(3)] == [10, 10, 10]
    assert records[2].captions[0] == "This person 10 has trait 0."
    assert all(shows(records, index, index) for index in range(3))


def test_celeba_attributes_are_read_where_present(tmp_path: Path) -> None:
    celeba(tmp_path)
    table = "3\nBald Smiling Young \n0.jpg  -1  1  1\n2.jpg   1 -1 -1\n10.jpg -1 -1  1\n"
    put(tmp_path / "CelebAMask-HQ-attribute-anno.txt", table)
    records = open_records(str(tmp_path))
    assert dict(records[1].attributes) == {"Bald": "1", "Smiling": "-1", "Young": "-1"}
    assert group_numbers(records, "Young") == [0, 1, 0]
    put(tmp_path / "CelebAMask-HQ-attribute-anno.txt", table + "11.jpg 1 1\n")
    with pytest.raises(ValueError, match=r"row 6 of .*attribute-anno.txt"):
        open_files(str(tmp_path))


def test_celeba_knows_the_persons_with_both_files_that_tell(tmp_path: Path) -> None:
    celeba(tmp_path)
    mapping = (
        "idx     orig_idx     orig_file\n0 119613 119614.jpg\n2 7 000008.jpg\n10 5 000006.jpg\n"
    )
    put(tmp_path / "CelebA-HQ-to-CelebA-mapping.txt", mapping)
    assert not open_files(str(tmp_path)).entries[0].attributes
    put(tmp_path / "identity_CelebA.txt", "000006.jpg 2880\n000008.jpg 41\n119614.jpg 2880\n")
    assert group_numbers(open_records(str(tmp_path)), "person") == [0, 1, 0]
    put(tmp_path / "identity_CelebA.txt", "000006.jpg\n")
    with pytest.raises(ValueError, match=r"row 1 of .*identity_CelebA\.txt"):
        open_files(str(tmp_path))


def test_a_celeba_image_without_text_and_a_text_without_image_are_missing(tmp_path: Path) -> None:
    celeba(tmp_path)
    put(tmp_path / "image" / "3.jpg", picture(3, "JPEG"))
    put(tmp_path / "text" / "celeba-caption" / "4.txt", "Nobody.\n")
    problems = {e.name: e.problem for e in open_files(str(tmp_path)).entries if e.problem}
    assert problems["3.jpg"] == "no caption"
    assert problems["4.jpg"].startswith("no image")
    assert len(open_records(str(tmp_path), skip_broken=True)) == 3


# WebDataset


def shard(path: Path, *members: tuple[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_webdataset_shards_are_read_in_place(tmp_path: Path) -> None:
    facts = json.dumps({"caption": "not this", "person": "ann", "width": 20, "ratio": 1.5})
    shard(
        tmp_path / "set" / "00000.tar",
        ("a/0001.jpg", picture(0, "JPEG")),
        ("a/0001.txt", "red,\nof one line\n"),
        ("a/0001.json", facts),
        ("a/0002.png", picture(1)),
        ("a/0002.json", json.dumps({"caption": "green"})),
    )
    shard(
        tmp_path / "set" / "00001.tar",
        ("0001.cls", "5"),
        ("0001.PNG", picture(2)),
        ("0001.json", json.dumps({"captions": ["blue", "a blue one", ""]})),
    )
    records = open_records(str(tmp_path / "set"))
    assert (records.form, records.name, len(records)) == ("webdataset", "set", 3)
    assert [records[i].captions for i in range(3)] == [
        ("red, of one line",), ("green",), ("blue", "a blue one"),
    ]  # fmt: skip
    assert [records[i].name for i in range(3)] == [
        "00000.tar:a/0001", "00000.tar:a/0002", "00001.tar:0001",
    ]  # fmt: skip
    assert dict(records[0].attributes) == {"person": "ann", "width": "20", "ratio": "1.5"}
    assert all(shows(records, index, index) for index in range(3))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["00000.tar", "00001.tar", "set"]
    assert open_files(str(tmp_path / "set" / "00001.tar")).name == "00001"


def test_webdataset_samples_that_lack_something_are_missing(tmp_path: Path) -> None:
    shard(tmp_path / "train-0.tar", ("1.txt", "x"), ("2.png", picture(0)), ("2.txt", " \n"))
    shard(tmp_path / "val-0.tar", ("1.txt", "x"), ("1.png", picture(0)))
    problems = [entry.problem for entry in open_files(str(tmp_path)).entries]
    assert problems == ["no image", "no caption"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("1.png", b"x"), ("1.jpg", b"x")], "1.jpg"),
        ([("1.json", "{")], "1.json"),
        ([("1.json", "[" * 100_000)], "1.json"),
        ([("1.txt", b"\xff")], "1.txt"),
        ([("1.txt", bytes(2 << 20))], "1.txt"),
    ],
)
def test_shards_that_do_not_fit_are_refused(tmp_path: Path, members, message: str) -> None:
    shard(tmp_path / "0.tar", *members)
    with pytest.raises(ValueError, match=message):
        open_files(str(tmp_path))


def test_links_in_a_shard_lead_nowhere(tmp_path: Path) -> None:
    put(tmp_path / "secret.png", picture(0))
    path = shard(tmp_path / "set" / "0.tar", ("../../1.png", picture(1)), ("../../1.txt", "x"))
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("2.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.png")
        tar.addfile(link)
    records = open_records(str(path))
    assert [records[i].name for i in range(len(records))] == ["0.tar:../../1"]
    assert shows(records, 0, 1)


def test_a_shard_that_is_cut_off_or_compressed_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(30_000)
    content = shard(tmp_path / "0.tar", ("1.txt", "x"), ("1.png", noise)).read_bytes()
    put(tmp_path / "0.tar", content[:20_000])
    with pytest.raises(ValueError, match=r"cut off|0\.tar"):
        open_records(str(tmp_path))
    put(tmp_path / "0.tar", gzip.compress(content))
    with pytest.raises(ValueError, match=r"0\.tar"):
        open_files(str(tmp_path))


# Parquet


def test_parquet_is_read_as_datasets_writes_it(tmp_path: Path) -> None:
    import datasets

    rows = {
        "image": [{"bytes": picture(i), "path": f"{i}.png"} for i in range(4)],
        "text": ["red", "green", None, "yellow"],
        "person": ["ann", "bob", "ann", None],
        "age": [31, 42, 31, 50],
    }
    features = datasets.Features(
        image=datasets.Image(),
        text=datasets.Value("string"),
        person=datasets.Value("string"),
        age=datasets.Value("int64"),
    )
    (tmp_path / "data").mkdir()
    made = datasets.Dataset.from_dict(rows, features=features)
    made.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", batch_size=3)
    records = open_files(str(tmp_path))
    assert (records.form, len(records)) == ("parquet", 4)
    assert [entry.problem for entry in records.entries] == ["", "", "no caption", ""]
    assert all(shows(records, index, index) for index in (3, 0, 1))
    assert dict(records[1].attributes) == {"person": "bob", "age": "42"}
    assert dict(records[3].attributes) == {"age": "50"}


def parquet(path: Path, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


@pytest.mark.parametrize("kind", ["binary", "large_binary", "binary_view"])
def test_parquet_as_polars_writes_it_is_read(tmp_path: Path, kind: str) -> None:
    images = pyarrow.array([picture(0), picture(1)], getattr(pyarrow, kind)())
    texts = pyarrow.array(["a", "b"], pyarrow.string_view())
    parquet(tmp_path / "x.parquet", image=images, caption=texts, person=[1.0, None])
    records = open_records(str(tmp_path))
    assert [shows(records, index, index) for index in range(2)] == [True, True]
    assert records[1].captions == ("b",)
    assert [dict(records[index].attributes) for index in range(2)] == [{"person": "1"}, {}]


def test_parquet_takes_lists_of_captions_and_several_splits(tmp_path: Path) -> None:
    images = [{"bytes": picture(i), "path": None} for i in range(3)]
    captions = [["a", "b"], ["c"], ["d", ""]]
    parquet(tmp_path / "train-0.parquet", picture=images, captions=captions)
    parquet(tmp_path / "train-1.parquet", picture=images[1:2], captions=captions[:1])
    parquet(tmp_path / "test-0.parquet", picture=images[:1], captions=captions[:1])
    records = open_records(str(tmp_path))
    assert [records[i].captions for i in range(4)] == [("a", "b"), ("c",), ("d",), ("a", "b")]
    assert [shows(records, i, colour) for i, colour in enumerate((0, 1, 2, 1))] == [True] * 4
    assert len(open_records(f"parquet:{tmp_path}/test-0.parquet")) == 1


def test_parquet_images_beside_the_file_are_read_and_no_others(tmp_path: Path) -> None:
    put(tmp_path / "set" / "0.png", picture(0))
    put(tmp_path / "secret.png", picture(1))
    images = [{"bytes": None, "path": p} for p in ("0.png", "../secret.png", None)]
    parquet(tmp_path / "set" / "x.parquet", image=images, text=["a", "b", "c"])
    records = open_records(str(tmp_path / "set"))
    assert shows(records, 0, 0)
    with pytest.raises(ValueError, match=r"\.\./secret.png"):
        records[1]
    assert list(open_records(str(tmp_path / "set"), skip_broken=True).left_out) == [
        "x.parquet:1", "x.parquet:2",
    ]  # fmt: skip


def test_parquet_without_the_columns_names_what_it_has(tmp_path: Path) -> None:
    parquet(tmp_path / "x.parquet", image=[b"1"], title=["a"])
    with pytest.raises(ValueError, match="image, title"):
        open_files(str(tmp_path))
    put(tmp_path / "x.parquet", "PAR1 not")
    with pytest.raises(ValueError, match=r"x\.parquet"):
        open_files(str(tmp_path))


# Fashion-MNIST


def idx(path: Path, values: np.ndarray, *, packed: bool = True) -> None:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    content = bytes((0, 0, 8, values.ndim)) + sizes + values.astype(np.uint8).tobytes()
    put(path.with_name(path.name + ".gz" * packed), gzip.compress(content) if packed else content)


def mnist(folder: Path, count: int = 40, *, split: str = "train", packed: bool = True) -> Path:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    idx(folder / f"{split}-images-idx3-ubyte", images, packed=packed)
    idx(folder / f"{split}-labels-idx1-ubyte", np.arange(count) % 10, packed=packed)
    return folder


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_images_have_captions_of_their_class(tmp_path: Path, packed: bool) -> None:
    records = open_records(str(mnist(tmp_path, packed=packed)))
    assert (records.form, records.name, len(records)) == ("fashion", "fashion-train", 40)
    random = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    assert np.array_equal(records[7].image()[..., 0], random[7])
    assert records[7].attributes == {"class": "sneaker"}
    captions = [records[i].captions[0] for i in range(40)]
    assert all("sneaker" in caption.lower() for caption in captions[7::10])
    assert (
        len({c.lower().replace(n, "") for c, n in zip(captions, fashion.CLASSES * 4, strict=True)})
        > 3
    )
    assert "rousers" in captions[1]
    assert "a trousers" not in captions[1].lower()


def test_the_wording_of_a_fashion_caption_does_not_depend_on_other_records(tmp_path: Path) -> None:
    every = open_records(str(mnist(tmp_path / "all")))
    random = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    idx(tmp_path / "fewer" / "train-images-idx3-ubyte", random[1:])
    idx(tmp_path / "fewer" / "train-labels-idx1-ubyte", np.arange(1, 40) % 10)
    fewer = open_records(str(tmp_path / "fewer"))
    assert [fewer[i].captions for i in range(39)] == [every[i].captions for i in range(1, 40)]


def test_fashion_test_split_is_named_by_its_file(tmp_path: Path) -> None:
    mnist(mnist(tmp_path), 10, split="t10k")
    records = open_records(f"{tmp_path}/t10k-images-idx3-ubyte.gz")
    assert (records.name, len(records)) == ("fashion-test", 10)


@pytest.mark.parametrize("part", ["images-idx3", "labels-idx1"])
def test_fashion_files_that_do_not_fit_are_refused(tmp_path: Path, part: str) -> None:
    file = mnist(tmp_path) / f"train-{part}-ubyte.gz"
    whole = file.read_bytes()
    put(file, whole[:-20])
    with pytest.raises(ValueError, match=file.name):
        open_files(str(tmp_path))
    put(file, gzip.compress(gzip.decompress(whole)[:-1]))
    with pytest.raises(ValueError, match="IDX"):
        open_files(str(tmp_path))
    file.unlink()
    if part.startswith("labels"):
        with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
            open_files(str(tmp_path))


@pytest.mark.skipif(not fashion.FOLDER.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_the_installed_fashion_mnist_is_whole() -> None:
    records = open_records("fashion-test")
    assert len(records) == 10_000
    assert records[0].attributes == {"class": "ankle boot"}
    assert records[0].image(128).shape == (128, 128, 3)


# Your own folder


def test_columns_are_attributes_as_far_as_rows_of_a_file_agree(tmp_path: Path) -> None:
    for index in range(2):
        put(tmp_path / f"{index}.png", picture(index))
    rows = "file_name,text,person,mood\n0.png,x,ann,glad\n0.png,y,ann,sad\n1.png,z,,\n"
    put(tmp_path / "metadata.csv", "\ufeff" + rows)
    records = open_records(str(tmp_path))
    assert records[0].captions == ("x", "y")
    assert dict(records[0].attributes) == {"person": "ann"}
    assert dict(records[1].attributes) == {}


def test_a_row_may_have_a_list_of_captions(tmp_path: Path) -> None:
    put(tmp_path / "0.png", picture(0))
    put(tmp_path / "metadata.jsonl", '{"file_name": "0.png", "text": ["a", "b"]}\n\n')
    assert open_records(str(tmp_path))[0].captions == ("a", "b")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("metadata.jsonl", "[1]", "row 1"),
        ("metadata.jsonl", "\n{", "row 2"),
        ("metadata.jsonl", '{"image": "0.png"}', r"row 1.*\['image'\]"),
        ("metadata.jsonl", '{"file_name": "0.png", "text": 5}', "row 1"),
        ("metadata.csv", "a,b\n1,2\n", r"\['a', 'b'\]"),
        ("metadata.csv", "file_name,text\n0.png,x\n1.png,red, big\n", "row 3"),
        ("metadata.csv", 'file_name,text\n0.png,"x\n1.png,y\n', "row 2"),
        ("metadata.csv", 'file_name,text\n0.png,"x"y\n', "row 2"),
        ("metadata.csv", "file_name,text,person\n0.png,x\n", "row 2"),
        ("metadata.csv", b"file_name,text\n\xff,x\n", "metadata.csv"),
    ],
)
def test_metadata_that_does_not_fit_is_refused_by_row(tmp_path: Path, name, content, told) -> None:
    put(tmp_path / name, content)
    with pytest.raises(ValueError, match=told):
        open_files(str(tmp_path))


def test_two_files_of_metadata_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "metadata.jsonl", '{"file_name": "0.png", "text": "a"}')
    put(tmp_path / "metadata.csv", "file_name,text\n0.png,b\n")
    with pytest.raises(ValueError, match="both"):
        open_files(str(tmp_path))


BREAKS = "a\u2028b\x85c\x0cd\x1ce"


def test_only_line_feeds_end_a_row(tmp_path: Path) -> None:
    put(tmp_path / "0.png", picture(0))
    row = {"file_name": "0.png", "text": BREAKS}
    put(tmp_path / "metadata.jsonl", json.dumps(row, ensure_ascii=False) + "\r\n")
    assert open_records(str(tmp_path))[0].captions == ("a b c d e",)
    (tmp_path / "metadata.jsonl").unlink()
    put(tmp_path / "metadata.csv", f'file_name,text\r\n0.png,"{BREAKS}, and\r\nmore"\r\n')
    assert open_records(str(tmp_path))[0].captions == ("a b c d e, and more",)
    put(tmp_path / "metadata.csv", f"file_name,text\n0.png,{BREAKS}\n")
    assert open_records(str(tmp_path))[0].captions == ("a b c d e",)


@pytest.mark.parametrize("suffix", [".txt", ".caption"])
def test_captions_in_files_beside_the_images_are_read(tmp_path: Path, suffix: str) -> None:
    for index in range(3):
        put(tmp_path / "10_cats" / f"{index}.png", picture(index))
        put(tmp_path / "10_cats" / f"{index}{suffix}", f"{BREAKS}\na cat {index}\r\n" * (index < 2))
    put(tmp_path / "10_cats" / "readme.txt", "nothing")
    records = open_files(str(tmp_path))
    assert (records.form, len(records)) == ("folder", 3)
    assert records[1].captions == ("a b c d e", "a cat 1")
    assert [entry.problem for entry in records.entries] == ["", "", "no caption"]


def test_names_of_other_systems_are_found(tmp_path: Path) -> None:
    put(tmp_path / "train" / "e\u0301.png", picture(0))  # as macOS writes what is typed as one
    put(tmp_path / "train" / "1.png", picture(1))
    rows = [{"file_name": "train\\é.png", "text": "a"}, {"file_name": "train\\1.png", "text": "b"}]
    put(tmp_path / "metadata.jsonl", "\n".join(map(json.dumps, rows)))
    records = open_files(str(tmp_path))
    assert (len(records.complete()), records.unlisted) == (2, [])
    assert shows(records, 1, 1)
    put(tmp_path / "metadata.jsonl", json.dumps({"file_name": "..\\x.png", "text": "a"}))
    with pytest.raises(ValueError, match="row 1"):
        open_files(str(tmp_path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.png")
    put(tmp_path / "metadata.jsonl", json.dumps({"file_name": "0.png", "text": "a"}))
    (entry,) = open_files(str(tmp_path)).entries
    assert entry.problem.startswith("no image")
    for name in ("set/0.tar", "set/0.parquet", "set/annotations/captions_train.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(tmp_path / name)
    with pytest.raises((ValueError, FileNotFoundError)):
        open_files(str(tmp_path / "set"))
    for form in ("webdataset", "parquet", "coco"):
        with pytest.raises((ValueError, FileNotFoundError)):
            open_files(f"{form}:{tmp_path}/set")


@pytest.mark.parametrize("table", [True, False])
def test_ids_written_as_floats_are_the_same_ids(tmp_path: Path, table: bool) -> None:
    ids: list[object] = [1.0, 1, 2.0, "2"]
    for index in range(4):
        put(tmp_path / f"{index}.png", picture(index))
    if table:
        rows = "".join(f"{index}.png,x,{own}\n" for index, own in enumerate(ids))
        put(tmp_path / "metadata.csv", "file_name,text,person\n" + rows)
    else:
        lines = [{"file_name": f"{i}.png", "text": "x", "person": own} for i, own in enumerate(ids)]
        put(tmp_path / "metadata.jsonl", "\n".join(map(json.dumps, lines)))
    records = open_records(str(tmp_path))
    assert group_numbers(records, "person") == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="a column 'patient', found person"):
        group_numbers(records, "patient")


def test_captions_are_cut_at_a_length_that_is_told(tmp_path: Path) -> None:
    put(tmp_path / "0.png", picture(0))
    put(tmp_path / "metadata.jsonl", json.dumps({"file_name": "0.png", "text": "word " * 300}))
    records = open_records(str(tmp_path))
    assert len(records[0].captions[0]) == MAX_CAPTION_CHARACTERS
    report = check_records(open_files(str(tmp_path)), cut=lambda captions: len(captions) + 6)
    assert (report["cut_characters"], report["cut_tokens"], report["wrong"]) == (1, 7, False)
    assert len(report["ways_out"]) == 2


def test_a_copy_has_the_same_images_and_another_set_has_not(tmp_path: Path) -> None:
    for folder, indices in (("a", (0, 1)), ("copy", (0, 1)), ("other", (2, 1))):
        for place, index in enumerate(indices):
            put(tmp_path / folder / f"{folder}{place}.png", picture(index))
            put(tmp_path / folder / f"{folder}{place}.txt", folder)
    first, copy, other = (open_records(str(tmp_path / n)) for n in ("a", "copy", "other"))
    assert first.digest != copy.digest
    assert (shared_images(first, copy), shared_images(first, other)) == (2, 1)


# Which format, which contents, how fast


def test_no_format_and_two_formats_are_refused_and_a_format_can_be_forced(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"folder: metadata.jsonl.*coco: annotations"):
        open_records(str(tmp_path))
    coco(celeba(tmp_path))
    with pytest.raises(ValueError, match=rf"coco, celeba.* coco:{tmp_path}"):
        open_records(str(tmp_path))
    assert open_records(f"coco:{tmp_path}").form == "coco"
    assert open_records(f"celeba:{tmp_path}").form == "celeba"
    with pytest.raises(ValueError, match=r"metadata\.jsonl or metadata\.csv"):
        open_records(f"folder:{tmp_path}")
    with pytest.raises(ValueError, match="coco:PATH"):
        open_records(f"coco:{tmp_path}/no")


MAKERS: dict[str, Callable[[Path], object]] = {
    "coco": coco,
    "celeba": celeba,
    "webdataset": lambda root: shard(root / "0.tar", ("1.png", picture(0)), ("1.txt", "x")),
    "parquet": lambda root: parquet(root / "0.parquet", image=[picture(0)], text=["x"]),
    "fashion": mnist,
}


@pytest.mark.parametrize("form", MAKERS)
def test_a_digest_stays_until_something_changes(tmp_path: Path, form: str) -> None:
    MAKERS[form](tmp_path)
    first = open_records(str(tmp_path))
    assert first.form == form
    assert open_records(f"{form}:{tmp_path}").digest == first.digest
    image = next(
        p for p in sorted(tmp_path.rglob("*")) if p.suffix in (".jpg", ".tar", ".parquet", ".gz")
    )
    content = bytearray(image.read_bytes())
    if form == "fashion":
        plain = bytearray(gzip.decompress(content))
        plain[-1] ^= 1
        content = bytearray(gzip.compress(plain))
    time.sleep(0.01)  # a file system's clock ticks
    put(image, bytes(content))
    assert open_records(str(tmp_path)).digest != first.digest


def test_ten_thousand_records_are_indexed_in_under_five_seconds(tmp_path: Path) -> None:
    content = picture(0)
    for index in range(10_000):
        (tmp_path / f"{index:05}.png").write_bytes(content)
    rows = ({"file_name": f"{i:05}.png", "text": f"number {i}", "person": i} for i in range(10_000))
    put(tmp_path / "metadata.jsonl", "\n".join(map(json.dumps, rows)))
    started = time.process_time()
    records = open_records(str(tmp_path))
    assert len(records) == 10_000
    assert max(group_numbers(records, "person")) == 9_999
    assert time.process_time() - started < 3


def test_a_set_on_disk_has_a_name_of_its_own(tmp_path, image_folder) -> None:
    shutil.copytree(image_folder, tmp_path / "faces-train")
    with pytest.raises(ValueError, match="faces-train"):
        open_records(str(tmp_path / "faces-train"))
