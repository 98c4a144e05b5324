"""The Privacy and About tabs: every figure is that of the accountants and of the cards."""

import math
import shutil

import gradio as gr
import numpy as np
import pytest

from dpwg.privacy.accountants import MAX_EPSILON
from dpwg.privacy.accounting import Ledger, LedgerEntry, epsilon_text
from dpwg.privacy.curves import explain
from dpwg.release.folder import find_checkpoint, load_card
from dpwg.ui.about import story
from dpwg.ui.limits import MAX_STEPS, described, whole
from dpwg.ui.parts import in_words
from dpwg.ui.privacy import EPSILON, NOISE, _card, account, settings_of

RUN = {
    "records": 50_000,
    "batch": 1024,
    "steps": 100,
    "delta": 1e-5,
    "known": NOISE,
    "noise": 1.0,
    "epsilon": 3.0,
}


@pytest.fixture(autouse=True)
def _checkpoints(root, monkeypatch):
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(root))


def ledger_of_noise(noise: float) -> Ledger:
    entry = LedgerEntry(sampling_rate=1024 / 50_000, noise_multiplier=noise, steps=100)
    return Ledger(entries=[entry])


def test_noise_gives_epsilon_by_three_accountants():
    first, second, last = account(**RUN)
    ledger = ledger_of_noise(1.0)
    spent = ledger.epsilons(1e-5)
    assert first.told.startswith(f"**ε = {epsilon_text(spent.pld)} at δ = 1e-05**")
    assert explain(ledger) in first.told
    assert (first.growth, first.table[1][1]) == (None, "is computed …")
    assert [row[1] for row in last.table] == [*map(epsilon_text, vars(spent).values())]
    assert spent.pld <= last.epsilon <= spent.pld * 1.0002
    line = second.growth.axes[0].get_lines()[0]
    assert line.get_xdata()[-1] == 100
    assert line.get_ydata()[-1] == pytest.approx(spent.pld, rel=0.01)
    pair, exact, guess = (line.get_ydata() for line in second.trade_off.axes[0].get_lines())
    assert (np.array(exact) <= np.array(pair) + 1e-6).all()
    assert (np.array(guess) <= np.array(exact) + 1e-6).all()


def test_epsilon_gives_a_noise_that_keeps_it():
    *_, last = account(**RUN | {"known": EPSILON})
    assert 2.99 < ledger_of_noise(last.noise).pld_epsilon(1e-5) <= 3.0


def test_no_noise_is_no_bound():
    *_, last = account(**RUN | {"noise": 0.0})
    assert "ε = no bound" in last.told
    assert last.epsilon is last.growth is None
    assert [row[1] for row in last.table] == ["no bound"] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"records": 0}, "records=0"),
        ({"records": math.nan}, "records=nan"),
        ({"records": None}, "records=None"),
        ({"batch": 60_000}, "pass records >= batch"),
        ({"batch": 10.5}, r"batch=10\.5"),
        ({"steps": MAX_STEPS + 1}, "steps="),
        ({"delta": 0.5}, "one whole record"),
        ({"delta": None}, "delta=None"),
        ({"delta": math.nan}, "delta=nan"),
        ({"noise": -1.0}, "noise=-1"),
        ({"noise": math.inf}, "noise=inf"),
        ({"noise": None}, "noise=None"),
        ({"known": EPSILON, "epsilon": 0.0}, r"epsilon=0\.0"),
        ({"known": EPSILON, "epsilon": None}, "epsilon=None"),
        ({"known": EPSILON, "epsilon": MAX_EPSILON + 1}, "epsilon="),
        ({"known": EPSILON, "epsilon": 1e-7}, "reachable with noise"),
    ],
)
def test_absurd_values_are_errors_in_words(change, message):
    with pytest.raises(gr.Error, match=message):
        next(account(**RUN | change))


def test_a_checkpoint_fills_in_its_own_run():
    card = load_card(find_checkpoint("faces/eps-1"))
    records, batch, steps, delta, known, noise = settings_of("faces/eps-1")
    assert (records, batch, steps, delta, noise) == (5_000, 100, 100, 1e-6, 2.0)
    *_, last = account(records, batch, steps, delta, known, noise, None)
    assert last.told.startswith(f"**ε = {epsilon_text(card.epsilon)} at δ = 1e-06**")
    assert settings_of("faces/eps-inf")[-1] == 0.0
    with pytest.raises(gr.Error, match="its epsilon is 0"):
        settings_of("faces/public")
    with pytest.raises(gr.Error, match="Expected checkpoint="):
        settings_of("../nowhere")


def test_no_path_of_the_server_reaches_a_visitor(tmp_path):
    with pytest.raises(gr.Error) as told, in_words():
        (tmp_path / "nothing").read_bytes()
    assert told.value.message.endswith(".")
    assert str(tmp_path) not in told.value.message


def test_cards_are_whole():
    assert _card("faces/eps-1").startswith("## faces/eps-1\n")
    assert load_card(find_checkpoint("faces/eps-1")).to_markdown() in _card("faces/eps-1")


def test_the_story_takes_its_figures_from_the_checkpoint():
    _, image, _, _, codes_text, codes, noise_text, _, _, upsampled = story("faces/eps-1")
    assert "of `faces/eps-1`:\n2 radii" in noise_text
    for told in ("32×32 into 192 codes", "64 per scale", "(8×8, 16×16, 32×32)"):
        assert told in codes_text
    assert image.shape == (512, 512, 3)
    assert codes.shape == (512, 3 * 512, 3)
    assert upsampled.shape == (512, 2 * 512, 3)
    assert "an example:\n1 radii" in story("faces/public")[6]


def test_a_damaged_checkpoint_leaves_the_story_to_the_next(root, tmp_path, monkeypatch):
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(tmp_path))
    shutil.copytree(tmp_path / "faces" / "eps-1", tmp_path / "faces" / "eps-10")
    for name in ("eps-10", "public"):
        next((tmp_path / "faces" / name).glob("*.safetensors")).write_bytes(b"cut off")
    told = story("faces/eps-10")[6]
    assert "`faces/eps-1`" in told
    assert "`faces/eps-10` is damaged" in told


def test_bounds_are_stated_and_kept():
    assert f"{MAX_STEPS:,} steps" in described()
    assert whole("n", 3.0, 0, 5) == 3
    for value in (True, "3", None, 2.5, math.inf, 6, -1):
        with pytest.raises(ValueError, match="Expected n="):
            whole("n", value, 0, 5)
