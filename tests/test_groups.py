"""Groups as the privacy unit: drawn, clipped, counted and told as one record each."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gradients import ONE_RECORD, Sums, assert_same_sums, clip, minus, norm_of
from scipy import stats

from dpwg.cli import main
from dpwg.data import open_records
from dpwg.data.records import group_numbers
from dpwg.privacy.accounting import Ledger, LedgerEntry, PrivacyPlan
from dpwg.privacy.card import PrivacyCard
from dpwg.release.folder import load_release
from dpwg.training import private
from dpwg.training.encodings import encode_images
from dpwg.training.examples import Examples
from dpwg.training.private import Finetuning, PrivateTraining

GROUP_I = (0, 1, 0, 2, 1, 0, 3, 0, 4, 1, 0, 0)
CAPTIONS_I = (1, 2, 3, 1, 1, 2, 1, 1, 2, 1, 1, 3)
GROUPS, IMAGES = 5, 12
PLAN = PrivacyPlan(
    records=GROUPS, batch_size=GROUPS, steps=1, delta=1e-3, noise_multiplier=50.0, max_grad_norm=0.1
)
EXACT = Finetuning(
    precision="float32", caption_dropout=0.0, micro_batch=2, save_every=1, warmup=1, lora_rank=0
)
LORA = dataclasses.replace(EXACT, lora_rank=2)


def test_what_repeats_is_counted_by_records(make_examples) -> None:
    """Images 0, 2 and 7 are the same, and so are 3 and 4: of records, or of groups."""
    ones, images = (1,) * 8, (0, 1, 0, 3, 3, 5, 6, 0)
    assert make_examples(ones, images).repeated == 5
    assert make_examples(ones, images).first(4).repeated == 2
    # 3 and 4 are one person's; 0 and 2 are too, and 7 is another's.
    group_I = torch.tensor([0, 1, 0, 2, 2, 1, 2, 3])
    assert make_examples(ones, images, group_I).repeated == 2
    assert make_examples(ones, images, torch.zeros(8, dtype=torch.int64)).repeated == 0


def without(examples: Examples, group: int) -> Examples:
    """The same, but one group adds nothing: no gradient of it is finite."""
    rows_I = torch.arange(sum(CAPTIONS_I)).split(CAPTIONS_I)
    gone_R = torch.cat([rows_I[i] for i, owner in enumerate(GROUP_I) if owner == group])
    gone_T = torch.isin(torch.arange(sum(CAPTIONS_I)).repeat_interleave(examples._length_R), gone_R)
    examples._tokens_TD[gone_T] = torch.nan
    return examples


@pytest.fixture(scope="module")
def make_groups(make_examples) -> Callable[[], Examples]:
    return lambda: make_examples(CAPTIONS_I, group_I=torch.tensor(GROUP_I))


@pytest.fixture
def clean(monkeypatch) -> list[Sums]:
    """The sums of every step before noise."""
    seen: list[Sums] = []

    def watched(sums: Sums, **_: object) -> None:
        seen.append({name: total.clone() for name, total in sums.items()})

    monkeypatch.setattr(private, "add_gaussian_noise", watched)
    return seen


def training(make_model, examples: Examples, settings: Finetuning = EXACT):
    torch.manual_seed(0)
    size = len(examples)
    plan = dataclasses.replace(PLAN, records=size, batch_size=size)
    generator = np.random.Generator(np.random.Philox(7))
    return PrivateTraining(make_model(), examples, plan, settings, generator=generator)


@pytest.mark.parametrize("settings", [EXACT, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("group", [0, 3])
def test_a_whole_group_removed_moves_the_sum_before_noise_by_at_most_the_clip_norm(
    make_model, make_groups, clean, settings, group: int
) -> None:
    for examples in (make_groups(), without(make_groups(), group)):
        report = next(training(make_model, examples, settings).run())
    assert (report.examples, report.refused) == (GROUPS, 1)
    moved = norm_of(minus(*clean))
    assert 0.98 * PLAN.max_grad_norm < moved <= PLAN.max_grad_norm * ONE_RECORD


def test_a_step_is_the_clipped_gradient_of_one_image_of_each_group(
    make_model, make_groups, clean
) -> None:
    examples = make_groups()
    next(training(make_model, examples).run())
    expected = np.random.Generator(np.random.Philox(7))
    expected.random(GROUPS)
    draw_B = torch.from_numpy(expected.random((2, GROUPS))[0])
    batch = examples.batch(torch.arange(GROUPS), draw_B=draw_B)
    _, sums = clip(
        make_model(),
        lambda m, _: m.negative_log_likelihood(batch.states_BLD, batch.mask_BL, batch.codes),
        GROUPS,
        PLAN.max_grad_norm,
    )
    assert_same_sums(clean[0], sums)


def test_each_visit_draws_an_image_of_its_group_then_a_caption_of_that_image(
    make_examples, make_groups
) -> None:
    grouped, single = make_groups(), make_examples(CAPTIONS_I)
    assert (len(grouped), grouped.images, len(single)) == (GROUPS, IMAGES, IMAGES)
    draws = 3000
    draw_B = torch.from_numpy(np.random.default_rng(0).random(draws))
    batch = grouped.batch(torch.zeros(draws, dtype=torch.int64), draw_B=draw_B)
    own = [i for i, owner in enumerate(GROUP_I) if owner == 0]
    found, expected = [], []
    for image in own:
        for caption in range(CAPTIONS_I[image]):
            place_B = torch.tensor([(caption + 0.5) / CAPTIONS_I[image]])
            one = single.batch(torch.tensor([image]), draw_B=place_B)
            same_B = (batch.states_BLD == one.states_BLD).flatten(1).all(1)
            for drawn, exact in zip(batch.codes, one.codes, strict=True):
                same_B &= (drawn == exact).flatten(1).all(1)
            found.append(int(same_B.sum()))
            expected.append(draws / len(own) / CAPTIONS_I[image])
    assert sum(found) == draws
    assert stats.chisquare(found, expected).pvalue > 1e-3
    part = grouped.first(2)
    assert (len(part), part.images) == (2, 9)
    rows = {"indices_B": torch.arange(2), "draw_B": torch.tensor([0.9, 0.4])}
    assert torch.equal(part.batch(**rows).states_BLD, grouped.batch(**rows).states_BLD)


@pytest.mark.parametrize(("group_I", "message"), [([0, 1], "found 2"), ([0, 2] * 6, "none of 1")])
def test_groups_that_do_not_fit_the_images_are_refused(make_examples, group_I, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_examples(CAPTIONS_I, group_I=torch.tensor(group_I))


def test_a_card_of_groups_says_so_and_survives_json() -> None:
    ledger = Ledger(entries=[LedgerEntry(sampling_rate=0.1, noise_multiplier=2.0, steps=9)])
    facts = {"delta": 1e-4, "dataset": "clinic", "records": 1_200, "max_grad_norm": 0.1}
    facts |= {"public_inputs": []}
    plain = PrivacyCard.from_ledger(ledger, **facts)
    card = PrivacyCard.from_ledger(ledger, **facts, group_column="patient", left_out=True)
    assert PrivacyCard.from_json(json.loads(json.dumps(card.to_json()))) == card
    card.verify()
    assert card.epsilon == plain.epsilon
    assert (card.of_groups, plain.of_groups) == (True, False)
    assert "'patient'" in card.unit
    text = card.to_markdown()
    assert "number of groups" in text
    assert "left out" in text
    assert "not a person who appears in several" in plain.to_markdown()
    assert "not a person who appears in several" not in text


# A folder with a column of persons


@pytest.fixture
def people(tmp_path: Path, image_folder: Path) -> Path:
    """Twelve images of five persons in five households."""
    folder = tmp_path / "people"
    folder.mkdir()
    rows = []
    for index, owner in enumerate(GROUP_I):
        shutil.copy(image_folder / (name := f"{index}.png"), folder)
        house = f"h{(owner + index // 11) % 5}"
        rows.append({"file_name": name, "text": name, "person": f"p{owner}", "household": house})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_equal_values_are_one_group_and_a_missing_one_is_refused(people: Path) -> None:
    records = open_records(str(people))
    assert tuple(group_numbers(records, "person")) == GROUP_I
    with pytest.raises(ValueError, match="a column 'patient', found household, person"):
        group_numbers(records, "patient")
    with (people / "metadata.jsonl").open("a") as file:
        shutil.copy(people / "0.png", people / "12.png")
        file.write('\n{"file_name": "12.png", "text": "x", "person": " "}')
    with pytest.raises(ValueError, match=r"'person' for 12\.png"):
        group_numbers(open_records(str(people)), "person")


def test_a_private_release_of_persons(
    capsys, root, monkeypatch, tmp_path: Path, people: Path
) -> None:
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(root))
    monkeypatch.setenv("DPWG_CACHE", str(tmp_path / "cache"))
    (people / "7.png").write_bytes(b"broken")
    (people / "9.png").write_bytes((people / "8.png").read_bytes())  # of two persons
    ask = [
        "finetune", "--data", str(people), "--noise-multiplier", "9", "--delta", "1e-3",
        "--steps", "2", "--batch", "2", "--micro-batch", "2", "--lora-rank", "2",
        "--skip-broken", "--json",
    ]  # fmt: skip
    person = ["--unit", "person"]
    assert main([*ask, *person, "--plan"]) == 0
    told = json.loads(capsys.readouterr().out)
    facts = {"records": 5, "images": 11, "left_out": 1, "unit": "person", "sampling_rate": 2 / 5}
    assert told.items() >= facts.items()
    run = ["--run-folder", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    assert main([*ask, *person, *run]) == 0
    printed = capsys.readouterr()
    assert "2 of 5 records" in printed.err
    told = json.loads(printed.out)
    card = load_release(tmp_path / "out").card
    assert (card.records, card.sampling_rate, card.steps) == (5, 2 / 5, 2)
    assert (told["epsilon"], told["records"]) == (card.epsilon, 5)
    assert card.of_groups
    assert "were left out" in card.limits[-1]
    assert main([*ask, *person, *run, "--resume"]) == 0
    assert json.loads(capsys.readouterr().out)["epsilon"] == card.epsilon
    assert main([*ask, "--unit", "household", *run, "--resume"]) == 2
    assert "Expected the data of the run" in capsys.readouterr().err
    assert main(["attack", str(tmp_path / "out")]) == 2
    assert "groups" in capsys.readouterr().err


def test_a_broken_image_stops_encoding_by_name(
    tmp_path: Path, people: Path, make_tokenizer
) -> None:
    (people / "7.png").write_bytes((people / "7.png").read_bytes()[:-40])
    records = open_records(str(people))
    with pytest.raises(ValueError, match=r"^7\.png is broken: "):
        list(encode_images(records, make_tokenizer(), tmp_path / "cache"))
    assert list((tmp_path / "cache").glob("codes*.npy")) == []
