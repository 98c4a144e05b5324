import dataclasses
import json
import math

import pytest

from dpwg.modules import checkpoint_root
from dpwg.privacy.accounting import Ledger, LedgerEntry, epsilon_text
from dpwg.privacy.card import CardMismatchError, PrivacyCard
from dpwg.privacy.curves import explain

RUN = {"sampling_rate": 0.02, "noise_multiplier": 2.0, "steps": 100}
INPUTS = [{"name": "tokenizer", "source": "DiceBear public mix", "licence": "CC0"}]


def make_card(*entries, **changes):
    values = {
        "delta": 1e-6,
        "dataset": "DiceBear avataaars, synthetic",
        "records": 50_000,
        "max_grad_norm": 1.0,
        "public_inputs": INPUTS,
        "target_epsilon": 1.0,
    }
    ledger = Ledger(entries=[LedgerEntry(**entry) for entry in entries])
    return PrivacyCard.from_ledger(ledger, **values | changes)


@pytest.fixture(scope="module")
def card():
    return make_card(RUN)


def test_card_states_what_the_ledger_holds_and_verifies(card):
    assert (card.steps, card.sampling_rate, card.noise_multiplier) == (100, 0.02, 2.0)
    assert 0 < card.epsilon < card.epsilon_rdp
    assert card.epsilon_prv == pytest.approx(card.epsilon, rel=0.01)
    assert {"torch", "opacus", "dp-accounting", "python"} <= card.software.keys()
    card.verify()


def test_card_survives_strict_json(card):
    text = json.dumps(card.to_json(), allow_nan=False)
    again = PrivacyCard.from_json(json.loads(text))
    assert again == card
    again.verify()


def test_mixed_ledger_leaves_rate_and_noise_to_the_ledger():
    card = make_card(RUN, RUN | {"noise_multiplier": 3.0})
    assert (card.steps, card.sampling_rate, card.noise_multiplier) == (200, 0.02, None)
    card.verify()
    assert "100 steps at rate 0.02, noise 3" in card.to_markdown()


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
        ({"ledger": [RUN | {"noise_multiplier": 4.0}]}, "noise_multiplier=2.0, its ledger 4.0"),
        ({"ledger": [RUN | {"noise_multiplier": 4.0}], "noise_multiplier": 4.0}, "epsilon="),
    ],
)
def test_tampered_card_is_refused_with_both_figures(card, change, message):
    tampered = PrivacyCard.from_json(card.to_json() | change)
    with pytest.raises(CardMismatchError, match=message):
        tampered.verify()


def test_rounding_of_another_machine_is_forgiven_and_no_more(card):
    PrivacyCard.from_json(card.to_json() | {"epsilon": card.epsilon * (1 + 5e-7)}).verify()
    with pytest.raises(CardMismatchError):
        PrivacyCard.from_json(card.to_json() | {"epsilon": card.epsilon * (1 - 5e-6)}).verify()


def test_run_past_its_target_is_refused():
    with pytest.raises(CardMismatchError, match="target_epsilon"):
        make_card(RUN, target_epsilon=0.2).verify()


def test_non_private_card_claims_no_bound_in_json_as_null():
    noiseless = RUN | {"noise_multiplier": 0.0}
    card = make_card(noiseless, target_epsilon=None, max_grad_norm=None)
    card.verify()
    data = json.loads(json.dumps(card.to_json(), allow_nan=False))
    assert [data[name] for name in ("epsilon", "epsilon_prv", "epsilon_rdp")] == [None] * 3
    with pytest.raises(CardMismatchError, match="its ledger inf"):
        PrivacyCard.from_json(data | {"epsilon": 3.0, "max_grad_norm": 1.0}).verify()
    with pytest.raises(CardMismatchError, match=r"target_epsilon=1.0"):
        PrivacyCard.from_json(data | {"target_epsilon": 1.0}).verify()


def test_public_card_needs_an_empty_ledger():
    card = make_card(records=0, dataset="none", max_grad_norm=None, target_epsilon=None)
    card.verify()
    assert (card.kind, card.epsilon, card.steps) == ("public", 0.0, 0)
    assert "saw no sensitive record" in card.to_markdown()


def test_a_run_whose_epsilon_rounds_to_0_is_private_and_no_public_one():
    """One step at rate 1e-7 has epsilon 0 at delta 1e-6, yet it did read sensitive records."""
    one = {"sampling_rate": 1e-7, "noise_multiplier": 1.0, "steps": 1}
    card = make_card(one, records=10**7, delta=9e-8)
    card.verify()
    assert (card.kind, card.epsilon) == ("private", 0)
    assert "saw no sensitive record" not in card.to_markdown()
    assert make_card(RUN | {"noise_multiplier": 0.0}, target_epsilon=None).kind == "non-private"


def test_steps_that_were_begun_and_lost_are_on_the_card():
    card = make_card(RUN | {"lost": 50})
    card.verify()
    assert (card.steps, card.epsilon) == (100, make_card(RUN).epsilon)
    told = card.to_markdown()
    assert "Of 150 steps that were begun 100 were finished" in told
    assert f"{epsilon_text(make_card(RUN | {'steps': 150}).epsilon)}." in told
    assert PrivacyCard.from_json(json.loads(json.dumps(card.to_json()))) == card


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
        ({"delta": 1 / 50_000}, "one whole record"),
        ({"delta": None}, "delta=None"),
        ({"steps": 1.5}, "steps=1.5"),
        ({"records": True}, "records=True"),
        ({"max_grad_norm": None}, "max_grad_norm=None"),
        ({"dataset": ""}, "dataset=''"),
        ({"software": {"torch": 2}}, "software="),
        ({"limits": "none"}, "limits="),
        ({"limits": [1]}, "limits="),
        ({"public_inputs": [{"name": "tokenizer"}]}, "public_inputs="),
        ({"ledger": [RUN | {"steps": -1}]}, "steps=-1"),
        ({"ledger": [RUN | {"steps": 10**12}]}, "steps=1000000000000"),
        ({"ledger": None}, "ledger=None"),
    ],
)
def test_invalid_field_is_refused_by_name(card, change, message):
    with pytest.raises(ValueError, match=message):
        PrivacyCard.from_json(card.to_json() | change)


@pytest.mark.parametrize("data", [{"epsilon": 1.0}, [], None, "card"])
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
