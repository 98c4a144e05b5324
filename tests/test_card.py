import dataclasses
import json
import math

import pytest

from dpwg.modules import checkpoint_root
from dpwg.privacy.accounting import Ledger, LedgerEntry, epsilon_text
from dpwg.privacy.card import CardMismatchError, PrivacyCard
from dpwg.privacy.curves import explain

RUN = {"sampling_rate": 0.02, "noise_multiplier": 2.0, "steps": 100}
LOUDER, NOISELESS = RUN | {"noise_multiplier": 4.0}, RUN | {"noise_multiplier": 0.0}
VALUES = {
    "delta": 1e-6,
    "dataset": "DiceBear avataaars, synthetic",
    "records": 50_000,
    "max_grad_norm": 1.0,
    "public_inputs": [{"name": "tokenizer", "source": "DiceBear public mix", "licence": "CC0"}],
    "target_epsilon": None,
}


def make_card(*entries, **changes) -> PrivacyCard:
    """A card of these runs that is good, and the same when read again."""
    ledger = Ledger(entries=[LedgerEntry(**entry) for entry in entries])
    card = PrivacyCard.from_ledger(ledger, **VALUES | changes)
    card.verify()
    assert PrivacyCard.from_json(json.loads(json.dumps(card.to_json(), allow_nan=False))) == card
    return card


@pytest.fixture(scope="module")
def card():
    return make_card(RUN, target_epsilon=1.0)


def test_card_states_what_the_ledger_holds(card):
    assert (card.steps, card.sampling_rate, card.noise_multiplier) == (100, 0.02, 2.0)
    assert 0 < card.epsilon < card.epsilon_rdp
    assert card.epsilon_prv == pytest.approx(card.epsilon, rel=0.01)
    assert {"torch", "opacus", "dp-accounting", "python"} <= card.software.keys()
    mixed = make_card(RUN, LOUDER)
    assert (mixed.steps, mixed.sampling_rate, mixed.noise_multiplier) == (200, 0.02, None)
    assert "100 steps at rate 0.02, noise 4" in mixed.to_markdown()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": 0.1}, "epsilon=0.1, its ledger 0.4"),
        ({"epsilon": None}, "epsilon=inf"),
        ({"epsilon": 0.0}, "epsilon=0.0"),
        ({"epsilon_rdp": 0.3}, "epsilon_rdp=0.3"),
        ({"delta": 1e-7}, "epsilon=0.4"),
        ({"target_epsilon": 0.1}, "target_epsilon=0.1"),
        ({"records": 5001}, "records"),
        ({"steps": 99}, "steps=99, its ledger 100"),
        ({"sampling_rate": 0.01}, "sampling_rate=0.01, its ledger 0.02"),
        ({"noise_multiplier": 2.5}, "noise_multiplier=2.5, its ledger 2.0"),
        ({"noise_multiplier": None}, "noise_multiplier=None, its ledger 2.0"),
        ({"ledger": []}, "steps=100, its ledger 0"),
        ({"ledger": [RUN, RUN]}, "steps=100, its ledger 200"),
        ({"ledger": [LOUDER], "noise_multiplier": 4.0}, "epsilon="),
    ],
)
def test_tampered_card_is_refused_with_both_figures(card, change, message):
    tampered = PrivacyCard.from_json(card.to_json() | change)
    with pytest.raises(CardMismatchError, match=message):
        tampered.verify()


def test_rounding_of_another_machine_is_forgiven_and_no_more(card):
    dataclasses.replace(card, epsilon=card.epsilon * (1 + 5e-7)).verify()
    with pytest.raises(CardMismatchError):
        dataclasses.replace(card, epsilon=card.epsilon * (1 - 5e-6)).verify()


def test_a_card_s_kind_follows_its_ledger():
    """One step at rate 1e-7 has epsilon 0 at delta 9e-8, yet it did read sensitive records."""
    public = make_card(records=0, dataset="none", max_grad_norm=None)
    assert (public.kind, public.epsilon, public.steps) == ("public", 0.0, 0)
    assert "saw no sensitive record" in public.to_markdown()
    one = {"sampling_rate": 1e-7, "noise_multiplier": 1.0, "steps": 1}
    tiny = make_card(one, records=10**7, delta=9e-8)
    assert (tiny.kind, tiny.epsilon) == ("private", 0)
    assert "saw no sensitive record" not in tiny.to_markdown()
    unbounded = make_card(NOISELESS, max_grad_norm=None)
    assert unbounded.kind == "non-private"
    assert {unbounded.epsilon, unbounded.epsilon_prv, unbounded.epsilon_rdp} == {None}
    with pytest.raises(CardMismatchError, match="its ledger inf"):
        dataclasses.replace(unbounded, epsilon=3.0, max_grad_norm=1.0).verify()
    with pytest.raises(CardMismatchError, match=r"target_epsilon=1.0"):
        dataclasses.replace(unbounded, target_epsilon=1.0).verify()


def test_steps_that_were_begun_and_lost_are_on_the_card(card):
    interrupted, begun = make_card(RUN | {"lost": 50}), make_card(RUN | {"steps": 150})
    assert (interrupted.steps, interrupted.epsilon) == (100, card.epsilon)
    told = interrupted.to_markdown()
    assert "Of 150 steps that were begun 100 were finished" in told
    assert f"{epsilon_text(begun.epsilon)}." in told


def test_cards_that_ship_load_with_their_epsilon_and_their_digest():
    for path in sorted(checkpoint_root().rglob("privacy_card.json")):
        data = json.loads(path.read_text())
        card = PrivacyCard.from_json(data)
        assert card.to_json() == data
        assert card.sha256 == json.loads((path.parent / "config.json").read_text())["card_sha256"]
        assert (card.kind == "public") == path.parent.name.startswith("public")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, r"unknown \['surprise'\]"),
        ({"epsilon": math.nan}, "epsilon=nan"),
        ({"epsilon": "1"}, "epsilon='1'"),
        ({"epsilon_rdp": -1.0}, "epsilon_rdp=-1.0"),
        ({"delta": 1 / 50_000}, "delta="),
        ({"steps": 1.5}, "steps=1.5"),
        ({"records": True}, "records=True"),
        ({"max_grad_norm": None}, "max_grad_norm=None"),
        ({"dataset": ""}, "dataset=''"),
        ({"software": {"torch": 2}}, "software="),
        ({"limits": "none"}, "limits="),
        ({"limits": [1]}, "limits="),
        ({"public_inputs": [{"name": "tokenizer"}]}, "public_inputs="),
        ({"ledger": [RUN | {"steps": 10**12}]}, "steps=1000000000000"),
        ({"ledger": None}, "ledger=None"),
    ],
)
def test_invalid_field_is_refused_by_name(card, change, message):
    with pytest.raises(ValueError, match=message):
        PrivacyCard.from_json(card.to_json() | change)


@pytest.mark.parametrize("data", [{"epsilon": 1.0}, [], None])
def test_json_of_another_shape_is_refused(data):
    with pytest.raises(ValueError, match=r"missing \['accesses_covered'"):
        PrivacyCard.from_json(data)


def test_markdown_shows_promise_figures_inputs_and_limits(card):
    text = card.to_markdown()
    assert explain(card.ledger) in text
    assert f"| epsilon (PLD) | {epsilon_text(card.epsilon)} |" in text
    assert "| records | 50,000 |" in text
    assert "- tokenizer: DiceBear public mix (CC0)" in text
    assert all(f"- {limit}" in text for limit in card.limits)
    unresolved = dataclasses.replace(card, epsilon_prv=None).to_markdown()
    assert "| epsilon (PRV) | not computed |" in unresolved
