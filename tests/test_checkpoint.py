"""Releases: round trips, refusals, sizes, and no pickle."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from dpwg.config import TextEncoderId
from dpwg.method.captions import EncodedText
from dpwg.method.sampling import Sampling, sample
from dpwg.method.transformer import WaveletGPT
from dpwg.modules import checkpoint_root, module_sha256
from dpwg.privacy.accounting import Ledger, LedgerEntry
from dpwg.privacy.card import CardMismatchError, PrivacyCard
from dpwg.release.folder import (
    FAMILIES,
    Release,
    checkpoint_names,
    describe,
    find_checkpoint,
    load_card,
    load_release,
    save_release,
)
from dpwg.release.shared import load_tokenizer, save_tokenizer

ENCODER = TextEncoderId(kind="clip", name="me/clip", digest="a" * 64, max_tokens=77)


@pytest.fixture(scope="module")
def card() -> PrivacyCard:
    entry = LedgerEntry(sampling_rate=0.1, noise_multiplier=1.5, steps=5)
    return PrivacyCard.from_ledger(
        Ledger(entries=[entry]),
        delta=1e-4,
        dataset="faces",
        records=100,
        max_grad_norm=0.5,
        public_inputs=[{"name": "tokenizer", "source": "public mix", "licence": "CC0"}],
    )


@pytest.fixture(scope="module")
def make_release(make_tokenizer, images, card) -> Callable[..., Release]:
    def make(seed: int = 0, **sizes: int) -> Release:
        tokenizer = make_tokenizer(seed)
        tokenizer.initialise_from(images, seed=seed, rounds=2)
        sizes = {"width": 16, "blocks": 1, "heads": 2, "text_width": 8, "code_hidden": 8} | sizes
        model = WaveletGPT.for_tokenizer(tokenizer, **sizes).eval()
        return Release(model=model, tokenizer=tokenizer, card=card, text_encoder=ENCODER)

    return make


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "checkpoints"
    root.mkdir()
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(root))
    return root


@pytest.fixture
def saved(root: Path, make_release) -> Path:
    save_release(root / "faces" / "eps-3", make_release())
    return root / "faces" / "eps-3"


def codes_of(release: Release) -> list[list[int]]:
    text = EncodedText(
        states_BLD=torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0)),
        mask_BL=torch.ones(2, 4, dtype=torch.bool),
    )
    empty = EncodedText(states_BLD=torch.ones(1, 4, 8), mask_BL=torch.ones(1, 4, dtype=torch.bool))
    *_, drawn = sample(release.model.double(), text, empty, [3, 4], Sampling())
    release.model.float()
    return [part.flatten().tolist() for part in drawn]


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_release_comes_back_to_bfloat16_with_its_codebooks_exact(saved, make_release) -> None:
    original, loaded = make_release(), load_release("faces/eps-3")
    for own, found in ((original.model, loaded.model), (original.tokenizer, loaded.tokenizer)):
        assert own.config == found.config
        assert not found.training
        assert not any(p.requires_grad for p in found.parameters())
        expected = own.state_dict()
        assert found.state_dict().keys() == expected.keys()
        for name, tensor in found.state_dict().items():
            assert tensor.dtype == torch.float32
            exact = name.startswith(("codebook", "spread_S"))
            kept = expected[name] if exact else expected[name].bfloat16().float()
            assert torch.equal(tensor, kept), name
    assert loaded.card == original.card
    assert loaded.text_encoder == original.text_encoder


def test_a_release_gives_the_same_codes_however_often_it_is_saved(saved, root) -> None:
    once = load_release("faces/eps-3")
    save_release(root / "again", once)
    twice = load_release("again")
    assert codes_of(once) == codes_of(twice)
    for name, tensor in once.model.state_dict().items():
        assert torch.equal(tensor, twice.model.state_dict()[name])


def test_a_tokenizer_comes_back_with_the_same_codes(tmp_path, make_release, images) -> None:
    save_tokenizer(tmp_path / "a", make_release().tokenizer)
    once = load_tokenizer(tmp_path / "a")
    save_tokenizer(tmp_path / "b", once)
    twice = load_tokenizer(tmp_path / "b")
    for x, y in zip(once.encode(images), twice.encode(images), strict=True):
        assert torch.equal(x, y)


def without(path: Path, name: str) -> None:
    values = json.loads(path.read_text())
    del values[name]
    path.write_text(json.dumps(values))


def another_card(saved: Path, **changes: object) -> None:
    """Give a release a true card that is another's."""
    card = load_card(saved)
    longer = Ledger(entries=[LedgerEntry(sampling_rate=0.02, noise_multiplier=9.0, steps=5)])
    other = PrivacyCard.from_ledger(
        longer, delta=card.delta, dataset="faces", records=100, max_grad_norm=0.5, public_inputs=[]
    )
    (saved / "privacy_card.json").write_text(json.dumps(other.to_json()))


CARD, CONFIG, TOKENIZER = "privacy_card.json", "config.json", "tokenizer/config.json"
DAMAGES = [
    *(
        (lambda at, change=change: edit(at / CARD, **change), "epsilon|delta|steps|noise")
        for change in (
            {"epsilon": 0.5},
            {"epsilon": None},
            {"epsilon": 0.0},
            {"steps": 4},
            {"noise_multiplier": 3.0},
            {"delta": 1e-3},
            {"target_epsilon": 0.01},
        )
    ),
    (another_card, "not of these weights"),
    (lambda at: without(at / CONFIG, "card_sha256"), "not of these weights"),
    (lambda at: (at / CARD).write_text("[["), "Expected JSON"),
    (lambda at: (at / CONFIG).write_text("[]"), "names with values"),
    *(
        (lambda at, name=name: without(at / CONFIG, name), name)
        for name in ("weights_sha256", "tokenizer", "tokenizer_sha256", "model")
    ),
    *(
        (lambda at, path=path, found=found: edit(at / path, format=found), "format=1|tokenizer")
        for path in (CONFIG, TOKENIZER)
        for found in (2, None, "1")
    ),
    (lambda at: edit(at / CONFIG, family="dp-other"), "dp-other"),
    (lambda at: edit(at / CONFIG, upsampler=["photo"]), "upsampler="),
    (lambda at: edit(at / TOKENIZER, heads=4), "tokenizer"),
    (lambda at: (at / "model.safetensors").write_bytes(b"no weights"), "weights"),
    (lambda at: (at / "model.safetensors").unlink(), "safetensors"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_a_damaged_release_is_refused_and_hides_no_other(saved, root, damage, words) -> None:
    shutil.copytree(saved, root / "faces" / "eps-4")
    damage(saved)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        load_release("faces/eps-3")
    assert checkpoint_names() == ["faces/eps-3", "faces/eps-4"]
    assert describe("faces/eps-4")["steps"] == load_release("faces/eps-4").card.steps == 5


@pytest.mark.parametrize(("damage", "words"), DAMAGES[:11])
def test_a_listing_and_a_card_refuse_it_too(saved, damage, words) -> None:
    damage(saved)
    for use in (describe, lambda name: load_card(find_checkpoint(name))):
        with pytest.raises(ValueError, match=words):
            use("faces/eps-3")


def test_a_family_is_looked_up_by_name(saved, monkeypatch) -> None:
    edit(saved / CONFIG, family="dp-other")
    monkeypatch.setitem(FAMILIES, "dp-other", FAMILIES["dp-wavelet"])
    assert load_release("faces/eps-3").family == "dp-other"
    without(saved / CONFIG, "family")  # as releases were before the second one
    assert load_release("faces/eps-3").family == "dp-wavelet"


def test_a_release_is_for_all_to_read_whatever_the_umask(saved) -> None:
    assert {path.stat().st_mode & 0o777 for path in saved.rglob("*")} == {0o644, 0o755}


def test_a_card_may_be_written_in_another_way(saved) -> None:
    path = saved / "privacy_card.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(values.items())), indent=7))
    assert load_card(saved).to_json() == values


def test_a_release_with_a_false_card_is_not_written(root, make_release, card) -> None:
    false = PrivacyCard.from_json(card.to_json() | {"epsilon": 0.1})
    with pytest.raises(CardMismatchError):
        save_release(root / "false", dataclasses.replace(make_release(), card=false))
    assert not (root / "false").exists()


def test_another_tokenizer_than_the_one_of_training_is_refused(saved, make_release) -> None:
    save_tokenizer(saved / "tokenizer", make_release(seed=1).tokenizer)
    with pytest.raises(ValueError, match="Expected the tokenizer"):
        load_release("faces/eps-3")


def test_several_releases_share_a_tokenizer_and_can_move_together(root, make_release, tmp_path):
    release = make_release()
    save_tokenizer(root / "tokenizer", release.tokenizer)
    for name in ("public", "eps-1"):
        save_release(root / "faces" / name, release, tokenizer_folder=root / "tokenizer")
        assert not (root / "faces" / name / "tokenizer").exists()
    shutil.move(root, tmp_path / "moved")
    moved = load_release(tmp_path / "moved" / "faces" / "eps-1")
    assert codes_of(moved) == codes_of(load_release(tmp_path / "moved" / "faces" / "public"))


def test_names_go_from_public_to_the_least_private(root) -> None:
    for name in ("eps-inf", "eps-10", "eps-1", "public", "eps-3", "eps-0.5"):
        for family in ("scenes", "faces"):
            folder = root / family / name
            folder.mkdir(parents=True)
            (folder / "privacy_card.json").write_text("{}")
    order = ["public", "eps-0.5", "eps-1", "eps-3", "eps-10", "eps-inf"]
    assert checkpoint_names() == [f"{f}/{name}" for f in ("faces", "scenes") for name in order]


def test_the_root_can_be_set_and_a_missing_one_is_empty(root, monkeypatch) -> None:
    assert checkpoint_root() == root
    assert checkpoint_names() == []
    monkeypatch.delenv("DPWG_CHECKPOINTS")
    assert checkpoint_root().name == "checkpoints"


@pytest.mark.parametrize("name", ["faces/eps-4", "", ".", "faces", "/etc", "../../etc", "~"])
def test_what_is_no_release_is_refused_with_the_names_there_are(saved, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"faces/eps-3"):
        find_checkpoint(name)


def test_a_name_does_not_leave_the_root(saved, root, tmp_path, monkeypatch) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(saved, outside)
    (root / "link").symlink_to(outside)
    monkeypatch.chdir(saved)
    for name in ("../outside", "faces/../../outside", "link"):
        with pytest.raises(FileNotFoundError):
            find_checkpoint(name)
    assert find_checkpoint("faces/../faces/eps-3") == saved
    assert find_checkpoint(outside) == outside


def files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def test_a_folder_holds_safetensors_and_json_of_less_than_ten_megabytes(root, make_release) -> None:
    save_release(root / "large", make_release(width=256, heads=4, blocks=8, text_width=384))
    sizes = {path.name: path.stat().st_size for path in files(root / "large")}
    assert sum(sizes.values()) > 12_000_000
    assert max(sizes.values()) < 10_000_000
    assert {Path(name).suffix for name in sizes} == {".safetensors", ".json"}
    assert sum(p.numel() for p in load_release("large").model.parameters()) > 6_000_000


def test_saving_over_a_larger_release_leaves_none_of_it(root, make_release) -> None:
    save_release(root / "x", make_release(width=256, heads=4, blocks=8, text_width=384))
    small = make_release()
    save_release(root / "x", small)
    save_release(root / "y", small)
    names = [{path.name for path in files(root / name)} for name in "xy"]
    assert names[0] == names[1]
    assert load_release("x").model.config == small.model.config


def test_a_release_describes_itself(saved, card, make_release) -> None:
    found = describe("faces/eps-3")
    assert found == {
        "name": "faces/eps-3",
        "epsilon": card.epsilon,
        "delta": 1e-4,
        "accountant": card.accountant,
        "steps": 5,
        "sampling_rate": 0.1,
        "noise_multiplier": 1.5,
        "max_grad_norm": 0.5,
        "records": 100,
        "dataset": "faces",
        "parameters": sum(p.numel() for p in make_release().model.parameters()),
        "bytes": sum(path.stat().st_size for path in saved.glob("*.safetensors")),
    }
    json.dumps(found, allow_nan=False)


def test_no_bound_is_described_as_none(root, make_release) -> None:
    free = PrivacyCard.from_ledger(
        Ledger(entries=[LedgerEntry(sampling_rate=0.1, noise_multiplier=0.0, steps=5)]),
        delta=1e-4, dataset="faces", records=100, max_grad_norm=None, public_inputs=[],
    )  # fmt: skip
    save_release(root / "faces" / "eps-inf", dataclasses.replace(make_release(), card=free))
    found = describe("faces/eps-inf")
    assert found["epsilon"] is None
    assert math.isfinite(found["delta"])


def test_nothing_but_a_release_is_replaced(make_release, tmp_path) -> None:
    out = tmp_path / "out"
    save_release(out, make_release())
    save_release(out, make_release(1))
    (out / "photo.jpg").write_bytes(b"mine")
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"of something else")
    for place in (out, other, out / "photo.jpg"):
        with pytest.raises(ValueError, match="Choose another folder"):
            save_release(place, make_release())
    assert (out / "photo.jpg").read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_a_release_refers_to_no_other_tokenizer_than_its_own(make_release, tmp_path) -> None:
    save_tokenizer(tmp_path / "tokenizer", make_release(1).tokenizer)
    with pytest.raises(ValueError, match="to be the one that the model was trained with"):
        save_release(tmp_path / "out", make_release(), tokenizer_folder=tmp_path / "tokenizer")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_replaces_a_tokenizer_and_nothing_else(make_release, tmp_path, saved) -> None:
    folder, tokenizer = tmp_path / "tokenizer", make_release().tokenizer
    save_tokenizer(folder, make_release(1).tokenizer)
    assert module_sha256(folder) != module_sha256(saved / "tokenizer")
    save_tokenizer(folder, tokenizer)
    assert module_sha256(folder) == module_sha256(saved / "tokenizer")
    (folder / "notes.txt").write_text("mine")
    for place in (folder, saved, tmp_path, folder / "notes.txt"):
        with pytest.raises(ValueError, match="earlier TokenizerConfig"):
            save_tokenizer(place, make_release(1).tokenizer)
    assert module_sha256(folder) == module_sha256(saved / "tokenizer")
    assert load_release("faces/eps-3").card.steps == 5
