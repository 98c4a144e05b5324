"""Releases: round trips, refusals, sizes, and no pickle."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dpwg.config import TextEncoderId
from dpwg.method.captions import EncodedText
from dpwg.method.sampling import Sampling, sample
from dpwg.method.transformer import WaveletGPT
from dpwg.modules import module_sha256
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


def a_card(noise: float) -> PrivacyCard:
    entry = LedgerEntry(sampling_rate=0.1, noise_multiplier=noise, steps=5)
    public = [{"name": "tokenizer", "source": "public mix", "licence": "CC0"}]
    return PrivacyCard.from_ledger(
        Ledger(entries=[entry]),
        delta=1e-4, dataset="faces", records=100, max_grad_norm=0.5, public_inputs=public,
    )  # fmt: skip


@pytest.fixture(scope="module")
def card() -> PrivacyCard:
    return a_card(1.5)


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


def test_a_release_and_its_tokenizer_are_the_same_however_often_saved(saved, root, images) -> None:
    once = load_release("faces/eps-3")
    save_release(root / "again", once)
    twice = load_release("again")
    assert codes_of(once) == codes_of(twice)
    for own, found in ((once.model, twice.model), (once.tokenizer, twice.tokenizer)):
        for name, tensor in own.state_dict().items():
            assert torch.equal(found.state_dict()[name], tensor)
    for x, y in zip(once.tokenizer.encode(images), twice.tokenizer.encode(images), strict=True):
        assert torch.equal(x, y)


def without(path: Path, name: str) -> None:
    values = json.loads(path.read_text())
    del values[name]
    path.write_text(json.dumps(values))


def another_card(saved: Path) -> None:
    """Give a release a true card that is another's."""
    other = dataclasses.replace(load_card(saved), dataset="others")
    (saved / CARD).write_text(json.dumps(other.to_json()))


def another_tokenizer(saved: Path) -> None:
    tokenizer = load_tokenizer(saved / "tokenizer")
    tokenizer.spread_S *= 2
    save_tokenizer(saved / "tokenizer", tokenizer)


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
    (another_tokenizer, "Expected the tokenizer"),
    (lambda at: (at / "model.safetensors").write_bytes(b"no weights"), "weights"),
    (lambda at: (at / "model.safetensors").unlink(), "safetensors"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_a_damaged_release_is_refused_and_hides_no_other(saved, root, damage, words) -> None:
    shutil.copytree(saved, root / "faces" / "eps-4")
    damage(saved)
    uses = [load_release]
    if (damage, words) in DAMAGES[:11]:  # the card itself, which a listing shows
        uses += [describe, lambda name: load_card(find_checkpoint(name))]
    for use in uses:
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            use("faces/eps-3")
    assert checkpoint_names() == ["faces/eps-3", "faces/eps-4"]
    assert describe("faces/eps-4")["steps"] == 5


def test_a_family_is_looked_up_by_name(saved, monkeypatch) -> None:
    edit(saved / CONFIG, family="dp-other")
    monkeypatch.setitem(FAMILIES, "dp-other", FAMILIES["dp-wavelet"])
    assert load_release("faces/eps-3").family == "dp-other"


def test_a_release_is_for_all_to_read_and_its_card_may_be_written_in_another_way(saved) -> None:
    assert {path.stat().st_mode & 0o777 for path in saved.rglob("*")} == {0o644, 0o755}
    values = json.loads((saved / CARD).read_text())
    (saved / CARD).write_text(json.dumps(dict(reversed(values.items())), indent=7))
    assert load_card(saved).to_json() == values


def test_a_false_card_and_another_tokenizer_are_not_written(root, make_release, card) -> None:
    false = PrivacyCard.from_json(card.to_json() | {"epsilon": 0.1})
    with pytest.raises(CardMismatchError):
        save_release(root / "out", dataclasses.replace(make_release(), card=false))
    save_tokenizer(root / "tokenizer", make_release(1).tokenizer)
    with pytest.raises(ValueError, match="to be the one that the model was trained with"):
        save_release(root / "out", make_release(), tokenizer_folder=root / "tokenizer")
    assert not (root / "out").exists()


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
    order = ["public", "eps-0.5", "eps-1", "eps-3", "eps-10", "eps-inf"]
    for name in sorted(order):
        for family in ("scenes", "faces"):
            (root / family / name).mkdir(parents=True)
            (root / family / name / CARD).write_text("{}")
    assert checkpoint_names() == [f"{f}/{name}" for f in ("faces", "scenes") for name in order]


@pytest.mark.parametrize(
    "name",
    ["faces/eps-4", "", ".", "faces", "/etc", "../../etc", "~", "../outside", "link",
     "faces/../../outside"],
)  # fmt: skip
def test_a_name_does_not_leave_the_root(saved, root, tmp_path, name: str) -> None:
    outside = shutil.copytree(saved, tmp_path / "outside")
    (root / "link").symlink_to(outside)
    with pytest.raises(FileNotFoundError, match=r"faces/eps-3"):
        find_checkpoint(name)
    assert find_checkpoint("faces/../faces/eps-3") == saved
    assert find_checkpoint(outside) == outside


def test_files_are_small_and_a_smaller_release_leaves_none_of_a_larger(root, make_release) -> None:
    def sizes(name: str) -> dict[str, int]:
        return {p.name: p.stat().st_size for p in (root / name).rglob("*") if p.is_file()}

    save_release(root / "x", make_release(width=256, heads=4, blocks=8, text_width=384))
    large = sizes("x")
    assert max(large.values()) < 10_000_000 < sum(large.values())
    assert {Path(name).suffix for name in large} == {".safetensors", ".json"}
    assert sum(p.numel() for p in load_release("x").model.parameters()) > 6_000_000
    small = make_release()
    for name in "xy":
        save_release(root / name, small)
    assert sizes("x").keys() == sizes("y").keys()
    assert load_release("x").model.config == small.model.config


def test_a_release_describes_itself(saved, root, card, make_release) -> None:
    found = describe("faces/eps-3")
    own = ("epsilon", "delta", "accountant", "steps", "sampling_rate", "noise_multiplier",
           "max_grad_norm", "records", "dataset")  # fmt: skip
    assert found == {
        "name": "faces/eps-3",
        **{name: getattr(card, name) for name in own},
        "parameters": sum(p.numel() for p in make_release().model.parameters()),
        "bytes": sum(path.stat().st_size for path in saved.glob("*.safetensors")),
    }
    assert (found["steps"], found["noise_multiplier"], found["delta"]) == (5, 1.5, 1e-4)
    free = dataclasses.replace(make_release(), card=a_card(0.0))
    save_release(root / "faces" / "eps-inf", free)
    found = describe("faces/eps-inf")
    assert found["epsilon"] is None
    json.dumps(found, allow_nan=False)


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
