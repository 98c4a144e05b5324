"""Data sets to share: the same whoever draws them, whole whenever they stop, open to `datasets`."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import multiprocessing
import random
import re
import resource
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard
from killing import killed_before_line

from dpwg import files
from dpwg.cli import main
from dpwg.data import open_records
from dpwg.method.pipeline import MAX_SEED, DPWaveletPipeline
from dpwg.method.sampling import Sampling
from dpwg.privacy.card import PrivacyCard
from dpwg.release.export import (
    Export,
    dataset_card,
    export_dataset,
    image_seed,
    parse_shard,
    shard_images,
)
from dpwg.release.folder import load_card, load_release
from dpwg.release.parts import FORMATS, Row, encode_png

CAPTIONS = ("a face", "red hair", "été, 笑顔", "glasses")
SMALL = Export(
    captions=CAPTIONS, captions_from="Written for this test", per_caption=2, seed=5,
    upsampler="bicubic", batch=2, part=3,
)  # fmt: skip


def of(format: str, **changes: Any) -> Export:
    return dataclasses.replace(SMALL, format=format, **changes)


@pytest.fixture(autouse=True)
def _checkpoints(root, monkeypatch) -> None:
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(root))


@pytest.fixture(scope="module")
def pipe(root) -> DPWaveletPipeline:
    return DPWaveletPipeline.from_pretrained(root / "faces" / "eps-1")


def draw(pipe, export: Export, folder: Path, shard: tuple[int, int] = (0, 1)) -> list[int]:
    return [*export_dataset(pipe, export, folder, checkpoint="faces/eps-1", shard=shard)]


def tree(folder: Path) -> dict[str, bytes]:
    """Files by name, without what a killed process left unfinished."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: (folder / name).read_bytes() for name in names if ".partial-" not in name}


@pytest.fixture(scope="module", params=FORMATS)
def whole(request, pipe, tmp_path_factory) -> tuple[Export, Path]:
    """A data set that one process drew without interruption."""
    folder = tmp_path_factory.mktemp("whole") / request.param
    assert draw(pipe, of(request.param), folder) == [2, 3, 5, 6, 8, 8]
    return of(request.param), folder


def test_datasets_opens_it_with_captions_and_seeds_card_and_plan_beside(
    whole, pipe, tmp_path
) -> None:
    export, folder = whole
    found = load_dataset(str(folder), split="train", cache_dir=tmp_path)
    assert len(found) == 8
    for index, row in enumerate(found):
        text, source = export.source(index)
        if export.format == "webdataset":
            row = {"image": row["png"], "text": row["txt"], **row["json"]}
        assert (row["text"], {name: row[name] for name in source}) == (text, source)
        assert text == CAPTIONS[index // 2]
    alone = pipe(text, seed=source["seed"], upsampler="bicubic").image[0]
    assert np.array_equal(np.asarray(row["image"]), alone)
    card, plan = (
        json.loads((folder / f"{n}.json").read_text()) for n in ("privacy_card", "export")
    )
    assert PrivacyCard.from_json(card) == pipe.release.card
    assert plan["card_sha256"] == pipe.release.card.sha256
    assert plan["weights_sha256"] == load_release("faces/eps-1").weights_sha256
    assert plan["sampling"] == export.sampling.to_json() | {"candidates": 1}
    page = DatasetCard.load(folder / "README.md")
    assert page.text == dataset_card(export, plan, pipe.release.card).text
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]


def test_shards_that_are_put_together_make_the_single_run(
    whole, pipe, tmp_path, monkeypatch
) -> None:
    export, folder = whole
    for place in (2, 0, 1):
        at = tmp_path / str(place == 1)
        assert draw(pipe, export, at, (place, 3))[-1] == shard_images(export, (place, 3))
        assert not (at / "README.md").exists()
    shutil.copytree(tmp_path / "True", tmp_path / "False", dirs_exist_ok=True)
    monkeypatch.setattr(DPWaveletPipeline, "__call__", None)  # nothing is drawn again
    draw(pipe, export, tmp_path / "False", (1, 3))  # ends what others drew
    assert tree(tmp_path / "False") == tree(folder)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"seed": 6}, "seed"),
        ({"captions": CAPTIONS[:3]}, "captions, captions_sha256, images"),
        ({"captions": (*CAPTIONS[:3], "another")}, "captions_sha256"),
        ({"per_caption": 1}, "images, per_caption"),
        ({"sampling": Sampling(guidance=2.0)}, "sampling"),
        ({"format": "parquet"}, "format"),
    ],
)
def test_another_export_and_what_is_none_are_left_alone(pipe, tmp_path, change, word) -> None:
    next(export_dataset(pipe, SMALL, tmp_path / "a", checkpoint="faces/eps-1"))
    with pytest.raises(ValueError, match=f"found another {word};"):
        draw(pipe, dataclasses.replace(SMALL, **change), tmp_path / "a")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="to be new or an export"):
        draw(pipe, SMALL, tmp_path / "mine")
    assert tree(tmp_path / "mine") == {"mine.txt": b"mine"}


def test_seeds_are_a_function_of_seed_caption_and_image_alone() -> None:
    assert [image_seed(0, 0, 0), image_seed(5, 3, 2)] == [189829311, 1989359643]
    seeds = {image_seed(s, i, j) for s in range(3) for i in range(30) for j in range(30)}
    assert len(seeds) == 2700
    assert all(0 <= seed <= MAX_SEED for seed in seeds)
    more = dataclasses.replace(SMALL, per_caption=7)
    for i, j in itertools.product(range(4), range(2)):
        assert SMALL.source(2 * i + j) == more.source(7 * i + j)


@pytest.mark.parametrize("text", ["", "1", "1/1", "3/2", "-1/2", "0/0", "a/b", "0/2/3", "0/²"])
def test_shards_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="as i/n with 0 <= i < n"):
        parse_shard(text)


@pytest.mark.parametrize(
    ("name", "words"),
    [("public", "Epsilon is 0"), ("eps-1", "Epsilon is 0."), ("eps-inf", "no bound on epsilon")],
)
def test_cards_say_what_they_promise(root, name: str, words: str) -> None:
    plan = {"checkpoint": name, "reranker": None, "upsampler": "bicubic"}
    card = load_card(root / "faces" / name)
    page = " ".join(str(dataset_card(SMALL, plan, card)).split())
    assert words in page
    assert ("by post-processing they tell no more" in page) is (name != "eps-inf")
    assert ("the model may reproduce records" in page) is (name == "eps-inf")
    assert "trained by others" not in page  # bicubic knows nothing
    assert all(" ".join(f"- {limit}".split()) in page for limit in card.limits)


def test_the_command_line_draws_a_set_that_can_be_trained_on(tmp_path, capsys, monkeypatch) -> None:
    out = tmp_path / "out"
    command = [
        "sample", "--checkpoint", "faces/eps-1", "--captions", "public:3", "--per-caption", "2",
        "--upsampler", "bicubic", "--part", "2", "--out", str(out), "--json",
    ]  # fmt: skip
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, whole in (("1", False), ("0", True)):
        monkeypatch.setenv("RANK", rank)
        assert main(command) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["whole"], told["images"]) == (whole, 2 + 2 * whole)
    records = open_records(str(out))
    assert len(records) == 6
    assert records[0].captions == records[1].captions != records[2].captions
    assert records[5].image().shape == (128, 128, 3)


def test_the_command_line_refuses_private_captions(tmp_path, capsys, image_folder) -> None:
    captions = str(image_folder / "metadata.jsonl")
    command = ["sample", "--checkpoint", "faces/eps-1", "--upsampler", "bicubic", "--json"]
    command += ["--captions", captions, "--out", str(tmp_path / "out")]
    assert main(command) == 2
    capsys.readouterr()
    assert not (tmp_path / "out").exists()
    assert main([*command, "--captions-are-public"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 12
    assert "declared public by its user" in (tmp_path / "out" / "README.md").read_text()


# A child is a fork of this process: it has the pipeline, and draws within milliseconds.
processes = multiprocessing.get_context("fork")


def child(pipe, export: Export, folder: Path) -> None:
    for _ in export_dataset(pipe, export, folder, checkpoint="faces/eps-1"):
        time.sleep(0.002)


def check_parts(export: Export, whole: Path, folder: Path) -> int:
    """Whatever has its final name is as in the whole set; returns how many parts have."""
    expected, found = tree(whole), tree(folder)
    assert found.items() <= expected.items()
    paths = [FORMATS[export.format].path(Path(), p, export.parts) for p in range(export.parts)]
    there = [path.as_posix() for path in paths if (folder / path).exists()]
    assert {name for name in expected if name.startswith(tuple(there))} <= found.keys()
    return len(there)


def check_kills(pipe, export: Export, whole: Path, folder: Path, kills: int) -> None:
    """Kill an export that often and let it end: byte for byte as if nothing had happened."""
    moments, reached = random.Random(kills), 0
    paths = [FORMATS[export.format].path(folder, p, export.parts) for p in range(export.parts)]
    for kill in range(kills + 1):
        process = processes.Process(target=child, args=(pipe, export, folder))
        process.start()
        if kill == kills:
            process.join(timeout=300)
            assert process.exitcode == 0
            break
        at_part = kill * export.parts // kills
        while sum(path.exists() for path in paths) < at_part:
            assert process.is_alive()
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0)
        found = check_parts(export, whole, folder)
        assert found >= max(reached, at_part)
        reached = found
    assert tree(folder) == tree(whole)
    kept = {path.name for path in folder.rglob(".*.partial-*")}
    assert not any(re.match(r"\.(\d|train)", name) for name in kept), kept


@pytest.mark.parametrize("whole", ["imagefolder"], indirect=True)
def test_an_export_killed_three_times_ends_as_one_never_killed(whole, pipe, tmp_path) -> None:
    export, folder = whole
    check_kills(pipe, export, folder, tmp_path / "killed", 3)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_an_export_killed_twenty_times_ends_as_one_never_killed(pipe, tmp_path, format) -> None:
    export = of(format, per_caption=15, part=3)
    draw(pipe, export, tmp_path / "whole")
    check_kills(pipe, export, tmp_path / "whole", tmp_path / "killed", 20)


@pytest.mark.parametrize("format", FORMATS)
def test_a_part_killed_before_any_line_is_whole_or_not_there(tmp_path, format) -> None:
    kind, seen, png = FORMATS[format], set(), encode_png(np.zeros((4, 4, 3), np.uint8))
    source = {"text": "a", "seed": 1, "caption_index": 0, "image_index": 0}
    rows = [Row(index=index, image_png=png, **source) for index in range(2)]

    def write(path: Path) -> None:
        with files.whole(path) as partial:
            kind.write(partial, rows)

    write(kind.path(tmp_path / "whole", 0, 1))
    expected = tree(tmp_path / "whole")
    for line in itertools.count():
        folder = tmp_path / str(line)
        path = kind.path(folder, 0, 1)
        killed = killed_before_line(line, files, functools.partial(write, path))
        seen.add(path.exists())
        if path.exists():
            assert tree(folder) == expected
        write(path)
        assert tree(folder) == expected
        if not killed:
            break
    assert line > 10
    assert seen == {False, True}


def memory(pipe, images: int, folder: Path) -> None:
    export = of("parquet", captions=("a face",), per_caption=images, batch=16, part=32)
    for _ in export_dataset(pipe, export, folder, checkpoint="faces/eps-1"):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (folder / "peak").write_text(str(peak))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data_set(pipe, tmp_path) -> None:
    peaks = []
    for images in (64, 1024):
        process = processes.Process(target=memory, args=(pipe, images, tmp_path / str(images)))
        process.start()
        process.join()
        peaks.append(int((tmp_path / str(images) / "peak").read_text()))
    assert peaks[1] < peaks[0] + 20_000  # in KiB
