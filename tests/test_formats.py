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
from pictures import plain, put, rows

from dpwg.data import fashion, open_records
from dpwg.data.check import check_records
from dpwg.data.files import FileRecords
from dpwg.data.formats import open_files
from dpwg.data.records import MAX_CAPTION_CHARACTERS, group_numbers, shared_images

COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30)]
PNG = [plain(colour) for colour in COLOURS]
JPEG = [plain(colour, "JPEG") for colour in COLOURS]


def shows(records: FileRecords, *colours: int) -> bool:
    """Whether the records, in order, are plain images of these colours."""
    pixels = [records[index].image(8).astype(int) for index in range(len(colours))]
    return all(np.abs(p - COLOURS[c]).max() < 12 for p, c in zip(pixels, colours, strict=True))


def problems(path: Path) -> dict[str, str]:
    return {entry.name: entry.problem for entry in open_files(str(path)).entries if entry.problem}


def coco(root: Path, captions: tuple[int, ...] = (5, 6, 5), split: str = "train2017") -> Path:
    """Files of cocodataset.org: ids are not positions, annotations in any order."""
    ids = [391895, 9, 522418][: len(captions)]
    annotations = [
        {"image_id": own, "id": 1000 * own + k, "caption": f"Image {own} said {k}. "}
        for k in range(max(captions))
        for own, count in zip(ids, captions, strict=True)
        if k < count
    ]
    for own, content in zip(ids, JPEG, strict=False):
        put(root / split / f"{own:012}.jpg", content)
    images = [{"license": 3, "file_name": f"{i:012}.jpg", "width": 20, "id": i} for i in ids]
    table = {"info": {}, "images": images, "annotations": annotations}
    put(root / "annotations" / f"captions_{split}.json", json.dumps(table))
    return root


def celeba(root: Path, images: str = "image", texts: str = "text/celeba-caption") -> Path:
    """MM-CelebA-HQ: ten captions a file; numbers without zeros, so 10 sorts before 2 as text."""
    for number, content in zip((0, 2, 10), JPEG, strict=False):
        put(root / images / f"{number}.jpg", content)
        lines = "".join(f"This person {number} has trait {k}.\n" for k in range(10))
        put(root / texts / f"{number}.txt", lines)
    return root


def shard(path: Path, *members: tuple[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def parquet(path: Path, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


def idx(path: Path, values: np.ndarray, *, packed: bool = True) -> None:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    content = bytes((0, 0, 8, values.ndim)) + sizes + values.astype(np.uint8).tobytes()
    put(path.with_name(path.name + ".gz" * packed), gzip.compress(content) if packed else content)


MNIST = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)


def mnist(folder: Path, part: slice = slice(40), *, split: str = "train", packed=True) -> Path:
    idx(folder / f"{split}-images-idx3-ubyte", MNIST[part], packed=packed)
    idx(folder / f"{split}-labels-idx1-ubyte", np.arange(40)[part] % 10, packed=packed)
    return folder


def test_coco_is_one_record_an_image_with_all_its_captions(tmp_path: Path) -> None:
    coco(coco(tmp_path / "coco"), (5, 7), "val2017")
    records = open_records(str(tmp_path / "coco"))
    assert (records.form, records.name) == ("coco", "coco-train2017")
    assert [len(record.captions) for record in records] == [5, 6, 5]
    assert (records[1].name, records[1].captions[5]) == ("000000000009.jpg", "Image 9 said 5.")
    assert shows(records, 0, 1, 2)
    assert len(open_files(f"{tmp_path}/coco/annotations/captions_val2017.json")) == 2
    coco(tmp_path / "coco", (5,), "train2014")
    with pytest.raises(ValueError, match=r"captions_train2014.json.*train2017.json"):
        open_files(str(tmp_path / "coco"))


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
    assert records.form == "celeba"
    assert [record.name for record in records] == ["0.jpg", "2.jpg", "10.jpg"]
    assert [len(record.captions) for record in records] == [10, 10, 10]
    assert records[2].captions[0] == "This person 10 has trait 0."
    assert shows(records, 0, 1, 2)


def test_celeba_knows_traits_and_persons_where_files_tell(tmp_path: Path) -> None:
    celeba(tmp_path)
    table = "3\nBald Smiling Young \n0.jpg  -1  1  1\n2.jpg   1 -1 -1\n10.jpg -1 -1  1\n"
    put(tmp_path / "CelebAMask-HQ-attribute-anno.txt", table)
    mapping = "idx orig_idx orig_file\n0 119613 119614.jpg\n2 7 000008.jpg\n10 5 000006.jpg\n"
    put(tmp_path / "CelebA-HQ-to-CelebA-mapping.txt", mapping)
    records = open_records(str(tmp_path))
    assert dict(records[1].attributes) == {"Bald": "1", "Smiling": "-1", "Young": "-1"}
    assert group_numbers(records, "Young") == [0, 1, 0]
    put(tmp_path / "identity_CelebA.txt", "000006.jpg 288\n000008.jpg 41\n119614.jpg 288\n")
    assert group_numbers(open_records(str(tmp_path)), "person") == [0, 1, 0]
    for name, content, row in (
        ("identity_CelebA.txt", "000006.jpg\n", 1),
        ("CelebAMask-HQ-attribute-anno.txt", table + "11.jpg 1 1\n", 6),
    ):
        put(tmp_path / name, content)
        with pytest.raises(ValueError, match=rf"row {row} of .*{name}"):
            open_files(str(tmp_path))


def test_what_has_no_image_or_no_caption_is_named_and_can_be_left_out(tmp_path: Path) -> None:
    coco(tmp_path / "coco", (5, 0, 5))
    (tmp_path / "coco" / "train2017" / f"{522418:012}.jpg").unlink()
    with pytest.raises(ValueError, match=r"2 of 3 have none, first 000000000009.jpg: no caption"):
        open_records(str(tmp_path / "coco"))
    kept = open_records(str(tmp_path / "coco"), skip_broken=True)
    assert (len(kept), list(kept.left_out)) == (1, [f"{9:012}.jpg", f"{522418:012}.jpg"])
    put(celeba(tmp_path / "celeba") / "image" / "3.jpg", JPEG[3])
    put(tmp_path / "celeba" / "text" / "celeba-caption" / "4.txt", "Nobody.\n")
    shard(tmp_path / "tar" / "train-0.tar", ("3.png", PNG[0]), ("3.txt", " "), ("4.txt", "x"))
    shard(tmp_path / "tar" / "val-0.tar", ("1.txt", "x"), ("1.png", PNG[0]))
    for folder in ("celeba", "tar"):
        (three, no_caption), (four, no_image) = sorted(problems(tmp_path / folder).items())
        assert ("3" in three, no_caption, "4" in four) == (True, "no caption", True)
        assert no_image.startswith("no image")


def test_webdataset_shards_are_read_in_place(tmp_path: Path) -> None:
    facts = json.dumps({"caption": "not this", "person": "ann", "width": 20, "ratio": 1.5})
    shard(
        tmp_path / "set" / "00000.tar",
        ("a/0001.jpg", JPEG[0]),
        ("a/0001.txt", "red,\nof one line\n"),
        ("a/0001.json", facts),
        ("a/0002.png", PNG[1]),
        ("a/0002.json", json.dumps({"caption": "green"})),
    )
    shard(
        tmp_path / "set" / "00001.tar",
        ("0001.cls", "5"),
        ("0001.PNG", PNG[2]),
        ("0001.json", json.dumps({"captions": ["blue", "a blue one", ""]})),
    )
    records = open_records(str(tmp_path / "set"))
    assert (records.form, records.name) == ("webdataset", "set")
    assert [(record.name, record.captions) for record in records] == [
        ("00000.tar:a/0001", ("red, of one line",)),
        ("00000.tar:a/0002", ("green",)),
        ("00001.tar:0001", ("blue", "a blue one")),
    ]
    assert dict(records[0].attributes) == {"person": "ann", "width": "20", "ratio": "1.5"}
    assert shows(records, 0, 1, 2)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["00000.tar", "00001.tar", "set"]
    assert open_files(str(tmp_path / "set" / "00001.tar")).name == "00001"


def test_links_in_a_shard_lead_nowhere(tmp_path: Path) -> None:
    put(tmp_path / "secret.png", PNG[0])
    path = shard(tmp_path / "set" / "0.tar", ("../../1.png", PNG[1]), ("../../1.txt", "x"))
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("2.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.png")
        tar.addfile(link)
    records = open_records(str(path))
    assert [record.name for record in records] == ["0.tar:../../1"]
    assert shows(records, 1)


def test_parquet_is_read_as_datasets_writes_it(tmp_path: Path) -> None:
    import datasets

    rows = {
        "image": [{"bytes": content, "path": "0.png"} for content in PNG],
        "text": ["red", "green", None, "yellow"],
        "person": ["ann", "bob", "ann", None],
        "age": [31, 42, 31, 50],
    }
    (tmp_path / "data").mkdir()
    made = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    made.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", batch_size=3)
    assert list(problems(tmp_path).values()) == ["no caption"]
    records = open_records(str(tmp_path), skip_broken=True)
    assert shows(records, 0, 1, 3)
    assert dict(records[1].attributes) == {"person": "bob", "age": "42"}
    assert dict(records[2].attributes) == {"age": "50"}


@pytest.mark.parametrize("kind", ["binary", "large_binary", "binary_view"])
def test_parquet_as_polars_writes_it_is_read(tmp_path: Path, kind: str) -> None:
    images = pyarrow.array(PNG[:2], getattr(pyarrow, kind)())
    texts = pyarrow.array(["a", "b"], pyarrow.string_view())
    parquet(tmp_path / "x.parquet", image=images, caption=texts, person=[1.0, None])
    records = open_records(str(tmp_path))
    assert shows(records, 0, 1)
    assert [record.captions for record in records] == [("a",), ("b",)]
    assert [dict(record.attributes) for record in records] == [{"person": "1"}, {}]


def test_parquet_takes_lists_of_captions_and_several_splits(tmp_path: Path) -> None:
    images = [{"bytes": content, "path": None} for content in PNG[:3]]
    captions = [["a", "b"], ["c"], ["d", ""]]
    parquet(tmp_path / "train-0.parquet", picture=images, captions=captions)
    parquet(tmp_path / "train-1.parquet", picture=images[1:2], captions=captions[:1])
    parquet(tmp_path / "test-0.parquet", picture=images[:1], captions=captions[:1])
    records = open_records(str(tmp_path))
    assert [record.captions for record in records] == [("a", "b"), ("c",), ("d",), ("a", "b")]
    assert shows(records, 0, 1, 2, 1)
    assert len(open_records(f"parquet:{tmp_path}/test-0.parquet")) == 1


def test_parquet_images_beside_the_file_are_read_and_no_others(tmp_path: Path) -> None:
    put(tmp_path / "set" / "0.png", PNG[0])
    put(tmp_path / "secret.png", PNG[1])
    images = [{"bytes": None, "path": p} for p in ("0.png", "../secret.png", None)]
    parquet(tmp_path / "set" / "x.parquet", image=images, text=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"\.\./secret.png"):
        open_records(str(tmp_path / "set"))[1]
    kept = open_records(str(tmp_path / "set"), skip_broken=True)
    assert list(kept.left_out) == ["x.parquet:1", "x.parquet:2"]
    assert shows(kept, 0)


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_images_have_captions_of_their_class(tmp_path: Path, packed: bool) -> None:
    mnist(mnist(tmp_path, packed=packed), slice(10), split="t10k", packed=packed)
    records = open_records(str(tmp_path))
    assert (records.form, records.name, len(records)) == ("fashion", "fashion-train", 40)
    assert np.array_equal(records[7].image()[..., 0], MNIST[7])
    assert records[7].attributes == {"class": "sneaker"}
    captions = [record.captions[0].lower() for record in records]
    assert all("sneaker" in caption for caption in captions[7::10])
    assert len({c.replace(n, "") for c, n in zip(captions, fashion.CLASSES * 4, strict=True)}) > 3
    assert "trousers" in captions[1]
    assert "a trousers" not in captions[1]
    test = open_records(f"{tmp_path}/t10k-images-idx3-ubyte{'.gz' * packed}")
    assert (test.name, len(test)) == ("fashion-test", 10)
    # The wording of a caption does not depend on other records.
    fewer = open_records(str(mnist(tmp_path / "fewer", slice(1, 40), packed=packed)))
    assert [record.captions[0].lower() for record in fewer] == captions[1:]


@pytest.mark.skipif(not fashion.FOLDER.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_the_installed_fashion_mnist_is_whole() -> None:
    records = open_records("fashion-test")
    assert len(records) == 10_000
    assert records[0].attributes == {"class": "ankle boot"}
    assert records[0].image(128).shape == (128, 128, 3)


def in_coco(change: Callable[[dict], object]) -> Callable[[Path], object]:
    def make(root: Path) -> None:
        file = coco(root) / "annotations" / "captions_train2017.json"
        table = json.loads(file.read_text())
        changed = change(table)
        put(file, changed if isinstance(changed, str | bytes) else json.dumps(table))

    return make


def in_tar(name: str, content: bytes | str, *more: tuple[str, bytes]) -> Callable[[Path], object]:
    return lambda root: shard(root / "0.tar", (name, content), *more)


def in_csv(content: str | bytes, suffix: str = "csv") -> Callable[[Path], object]:
    return lambda root: put(root / f"metadata.{suffix}", content)


def both_tables(root: Path) -> None:
    put(root / "metadata.jsonl", rows(("0.png", "a")))
    put(root / "metadata.csv", "file_name,text\n0.png,b\n")


def packed(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def make(root: Path) -> None:
        noise = np.random.default_rng(0).bytes(30_000)
        shard(mnist(root) / "0.tar", ("1.txt", "x"), ("1.png", noise))
        content = change((root / name).read_bytes())
        shutil.rmtree(root)
        put(mnist(root) / name if name.endswith("gz") else root / name, content)

    return make


COCO, IMAGES, LABELS = r"captions_train2017\.json", "train-images-idx3", "train-labels-idx1"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (in_coco(lambda t: t["images"][0].update(file_name="../../secret.jpg")), COCO),
        (in_coco(lambda t: t["images"][0].update(file_name="/etc/passwd")), COCO),
        (in_coco(lambda t: t["images"][0].update(file_name=7)), COCO),
        (in_coco(lambda t: t["annotations"][0].update(image_id=7)), COCO),
        (in_coco(lambda t: t["annotations"][0].pop("caption")), COCO),
        (in_coco(lambda t: t["images"].append(t["images"][0])), COCO),
        (in_coco(lambda t: t.pop("annotations")), COCO),
        (in_coco(lambda t: "[" * 100_000), COCO),
        (in_coco(lambda t: b"\xff\xfe"), COCO),
        (in_tar("1.png", b"x", ("1.jpg", b"x")), "1.jpg"),
        (in_tar("1.json", "{"), "1.json"),
        (in_tar("1.json", "[" * 100_000), "1.json"),
        (in_tar("1.txt", b"\xff"), "1.txt"),
        (in_tar("1.txt", bytes(2 << 20)), "1.txt"),
        (packed("0.tar", lambda content: content[:20_000]), r"cut off|0\.tar"),
        (packed("0.tar", gzip.compress), r"0\.tar"),
        (lambda root: parquet(root / "x.parquet", image=[b"1"], title=["a"]), "image, title"),
        (lambda root: put(root / "x.parquet", "PAR1 not"), r"x\.parquet"),
        (packed(f"{IMAGES}-ubyte.gz", lambda content: content[:-20]), IMAGES),
        (packed(f"{LABELS}-ubyte.gz", lambda content: content[:-20]), LABELS),
        (packed(f"{IMAGES}-ubyte.gz", lambda c: gzip.compress(gzip.decompress(c)[:-1])), "IDX"),
        (packed(f"{LABELS}-ubyte.gz", lambda c: gzip.compress(gzip.decompress(c)[:-1])), "IDX"),
        (in_csv("[1]", "jsonl"), "row 1"),
        (in_csv("\n{", "jsonl"), "row 2"),
        (in_csv('{"image": "0.png"}', "jsonl"), r"row 1.*\['image'\]"),
        (in_csv(rows(("0.png", 5)), "jsonl"), "row 1"),
        (in_csv(rows(("..\\x.png", "a")), "jsonl"), "row 1"),
        (in_csv(rows(("../x.png", "a")), "jsonl"), r"\.\./x.png.*row 1"),
        (in_csv(rows(("", "a")), "jsonl"), "row 1"),
        (in_csv(rows(("no.png", "a")), "jsonl"), "1 of 1 have none, first no.png: no image"),
        (in_csv("", "jsonl"), "at least one record"),
        (in_csv("a,b\n1,2\n"), r"\['a', 'b'\]"),
        (in_csv("file_name,text\n0.png,x\n1.png,red, big\n"), "row 3"),
        (in_csv('file_name,text\n0.png,"x\n1.png,y\n'), "row 2"),
        (in_csv('file_name,text\n0.png,"x"y\n'), "row 2"),
        (in_csv("file_name,text,person\n0.png,x\n"), "row 2"),
        (in_csv(b"file_name,text\n\xff,x\n"), "metadata.csv"),
        (both_tables, "both"),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name(tmp_path: Path, make, told: str) -> None:
    make(tmp_path)
    with pytest.raises(ValueError, match=told):
        open_records(str(tmp_path))


def test_columns_are_attributes_as_far_as_rows_of_a_file_agree(tmp_path: Path) -> None:
    for index in range(2):
        put(tmp_path / f"{index}.png", PNG[index])
    table = "file_name,text,person,mood\n0.png,x,ann,glad\n0.png,y,ann,sad\n1.png,z,,\n"
    put(tmp_path / "metadata.csv", "\ufeff" + table)
    first, second = open_records(str(tmp_path))
    assert (first.captions, dict(first.attributes)) == (("x", "y"), {"person": "ann"})
    assert dict(second.attributes) == {}


BREAKS = "a\u2028b\x85c\x0cd\x1ce"


@pytest.mark.parametrize(
    ("name", "content", "captions"),
    [
        ("metadata.csv", f"file_name,text\n0.png,{BREAKS}\n", ("a b c d e",)),
        ("metadata.csv", f'file_name,text\r\n0.png,"{BREAKS},\r\nf"\r\n', ("a b c d e, f",)),
        (
            "metadata.jsonl",
            json.dumps({"file_name": "0.png", "text": [BREAKS, "b"]}, ensure_ascii=False)
            + "\r\n\n",
            ("a b c d e", "b"),
        ),
        ("0.txt", f"{BREAKS}\nb\r\n", ("a b c d e", "b")),
        ("0.caption", f"{BREAKS}\nb\r\n", ("a b c d e", "b")),
    ],
)
def test_only_line_feeds_end_a_row(tmp_path: Path, name, content, captions) -> None:
    put(tmp_path / "0.png", PNG[0])
    put(tmp_path / name, content)
    assert open_records(str(tmp_path))[0].captions == captions


def test_rows_of_one_file_are_one_record(tmp_path: Path) -> None:
    put(tmp_path / "mine" / "deep" / "a.png", PNG[0])
    names = ("deep/a.png", "deep/../deep/a.png")
    put(tmp_path / "mine" / "metadata.jsonl", rows(*((name, "x") for name in names), ("a", " ")))
    records = open_records(str(tmp_path / "mine"), skip_broken=True)
    assert (records.name, len(records), records[0].captions) == ("mine", 1, ("x", "x"))
    assert shows(records, 0)


def test_captions_in_files_beside_the_images_are_read(tmp_path: Path) -> None:
    for name, caption in (("0", "a"), ("1", "a cat"), ("2", "")):
        put(tmp_path / "10_cats" / f"{name}.png", PNG[0])
        put(tmp_path / "10_cats" / f"{name}.txt", caption)
    put(tmp_path / "10_cats" / "readme.txt", "nothing")
    records = open_files(str(tmp_path))
    assert (records.form, len(records)) == ("folder", 3)
    assert records[1].captions == ("a cat",)
    assert [entry.problem for entry in records.entries] == ["", "", "no caption"]


def test_names_of_other_systems_are_found(tmp_path: Path) -> None:
    put(tmp_path / "train" / "e\u0301.png", PNG[0])  # as macOS writes what is typed as one
    put(tmp_path / "train" / "1.png", PNG[1])
    put(tmp_path / "metadata.jsonl", rows(("train\\é.png", "a"), ("train\\1.png", "b")))
    records = open_files(str(tmp_path))
    assert (len(records.complete()), records.unlisted) == (2, [])
    assert shows(records, 0, 1)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.png")
    put(tmp_path / "metadata.jsonl", rows(("0.png", "a")))
    assert problems(tmp_path)["0.png"].startswith("no image")
    for name in ("set/0.tar", "set/0.parquet", "set/annotations/captions_train.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(tmp_path / name)
    for form in ("", "webdataset:", "parquet:", "coco:"):
        with pytest.raises((ValueError, FileNotFoundError)):
            open_files(f"{form}{tmp_path}/set")


@pytest.mark.parametrize("table", [True, False])
def test_ids_written_as_floats_are_the_same_ids(tmp_path: Path, table: bool) -> None:
    own = [(f"{index}.png", own) for index, own in enumerate((1.0, 1, 2.0, "2"))]
    for name, _ in own:
        put(tmp_path / name, PNG[0])
    lines = "".join(f"{name},x,{person}\n" for name, person in own)
    told = "\n".join(rows((name, "x"), person=person) for name, person in own)
    content = "file_name,text,person\n" + lines if table else told
    put(tmp_path / f"metadata.{'csv' if table else 'jsonl'}", content)
    records = open_records(str(tmp_path))
    assert group_numbers(records, "person") == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="a column 'patient', found person"):
        group_numbers(records, "patient")


def test_captions_are_cut_at_a_length_that_is_told(tmp_path: Path) -> None:
    put(tmp_path / "0.png", PNG[0])
    put(tmp_path / "metadata.jsonl", rows(("0.png", "word " * 300)))
    assert len(open_records(str(tmp_path))[0].captions[0]) == MAX_CAPTION_CHARACTERS
    report = check_records(open_files(str(tmp_path)), cut=lambda captions: len(captions) + 6)
    assert (report["cut_characters"], report["cut_tokens"], report["wrong"]) == (1, 7, False)


def test_a_copy_has_the_same_images_and_another_set_has_not(tmp_path: Path) -> None:
    for folder, indices in (("a", (0, 1)), ("copy", (0, 1)), ("other", (2, 1))):
        for place, index in enumerate(indices):
            put(tmp_path / folder / f"{folder}{place}.png", PNG[index])
            put(tmp_path / folder / f"{folder}{place}.txt", folder)
    first, copy, other = (open_records(str(tmp_path / n)) for n in ("a", "copy", "other"))
    assert first.digest != copy.digest
    assert (shared_images(first, copy), shared_images(first, other)) == (2, 1)


def test_no_format_and_two_formats_are_refused_and_a_format_can_be_forced(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"folder: metadata.jsonl.*coco: annotations"):
        open_records(str(tmp_path))
    coco(celeba(tmp_path))
    with pytest.raises(ValueError, match=rf"coco, celeba.* coco:{tmp_path}"):
        open_records(str(tmp_path))
    for form in ("coco", "celeba"):
        assert open_records(f"{form}:{tmp_path}").form == form
    for wrong in (f"folder:{tmp_path}", f"coco:{tmp_path}/no", f"fashion:{tmp_path}"):
        with pytest.raises((ValueError, FileNotFoundError)):
            open_records(wrong)


MAKERS: dict[str, Callable[[Path], object]] = {
    "coco": coco,
    "celeba": celeba,
    "webdataset": in_tar("1.png", PNG[0], ("1.txt", b"x")),
    "parquet": lambda root: parquet(root / "0.parquet", image=[PNG[0]], text=["x"]),
    "fashion": mnist,
    "folder": lambda root: put(put(root / "0.png", PNG[0]).with_suffix(".txt"), "x"),
}


@pytest.mark.parametrize("form", MAKERS)
def test_a_digest_stays_until_something_changes(tmp_path: Path, form: str) -> None:
    MAKERS[form](tmp_path)
    first = open_records(str(tmp_path))
    assert first.form == form
    assert open_records(f"{form}:{tmp_path}").digest == first.digest
    suffixes = (".jpg", ".png", ".tar", ".parquet", ".gz")
    file = next(path for path in sorted(tmp_path.rglob("*")) if path.suffix in suffixes)
    content = file.read_bytes()
    if form == "fashion":
        whole = gzip.decompress(content)
        content = gzip.compress(whole[:-1] + bytes([whole[-1] ^ 1]))
    time.sleep(0.01)  # a file system's clock ticks
    put(file, content)
    second = open_records(str(tmp_path)).digest
    assert second != first.digest
    for text in [*tmp_path.rglob("*.txt")][:1]:
        put(text, "another")
        assert open_records(str(tmp_path)).digest != second


def test_ten_thousand_records_are_indexed_in_under_three_seconds(tmp_path: Path) -> None:
    names = [f"{index:05}.png" for index in range(10_000)]
    for name in names:
        (tmp_path / name).write_bytes(PNG[0])
    lines = [json.dumps({"file_name": name, "text": name, "person": name}) for name in names]
    put(tmp_path / "metadata.jsonl", "\n".join(lines))
    started = time.process_time()
    records = open_records(str(tmp_path))
    assert max(group_numbers(records, "person")) == len(records) - 1 == 9_999
    assert time.process_time() - started < 3


def test_a_set_on_disk_has_a_name_of_its_own(tmp_path, image_folder) -> None:
    shutil.copytree(image_folder, tmp_path / "faces-train")
    with pytest.raises(ValueError, match="faces-train"):
        open_records(str(tmp_path / "faces-train"))
