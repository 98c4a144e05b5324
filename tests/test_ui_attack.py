"""The Attack tab: stored results and what becomes of bad ones, the live attack, nearest records."""

import functools
import json
import math
import shutil

import gradio as gr
import numpy as np
import pytest
from cards import recarded
from PIL import Image

from dpwg.cli import main
from dpwg.data.faces import face
from dpwg.measure.membership import MembershipAttack, membership_attack, result_file
from dpwg.privacy.accounting import Ledger, LedgerEntry, epsilon_text
from dpwg.privacy.card import PrivacyCard
from dpwg.privacy.curves import max_true_positive_rate, max_true_positive_rates
from dpwg.release.folder import find_checkpoint, load_card, named_weights_sha256
from dpwg.ui import results
from dpwg.ui.attack import attack, attack_live, engine_told
from dpwg.ui.limits import MAX_ATTACKED, MAX_SEARCHED
from dpwg.ui.nearest import DATA, coarse_faces, nearest, refusal
from dpwg.ui.own import Shown


@pytest.fixture(scope="module")
def faces(root, tmp_path_factory):
    """The tiny releases as if two of them had been fine-tuned on 1,000 faces."""
    folder = tmp_path_factory.mktemp("faces")
    shutil.copytree(root, folder, dirs_exist_ok=True)
    for name in ("eps-1", "eps-inf"):
        recarded(folder / "faces" / name, dataset="faces-train", records=1000)
    return folder


@pytest.fixture(autouse=True)
def stored(faces, tmp_path, monkeypatch):
    """An empty folder of membership results, with the releases in place."""
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(faces))
    for name in ("membership_result", "engine_runs"):
        reader = functools.partial(getattr(results, name), folder=tmp_path)
        monkeypatch.setattr(f"dpwg.ui.attack.{name}", reader)
    folder = tmp_path / results.MEMBERSHIP
    folder.mkdir()
    return folder


def measured(name: str = "faces/eps-1", *, shift: float = 0.3, **change) -> MembershipAttack:
    draw, card = np.random.default_rng(1), load_card(find_checkpoint(name))
    about = {
        "checkpoint": name,
        "weights": named_weights_sha256(find_checkpoint(name)),
        "reference": "faces/public",
        "data": "faces-train",
        "others": "faces-test",
        "epsilon": card.epsilon,
        "delta": card.delta,
    }
    members_N, others_N = draw.normal(shift, 1, 3000), draw.normal(0, 1, 2000)
    return membership_attack(members_N, others_N, **about | change)


def write(folder, found: MembershipAttack, name: str = "faces/eps-1") -> None:
    (folder / result_file(name)).write_text(json.dumps(found.to_json()))


def test_a_result_is_shown_with_what_the_ledger_allows(stored):
    found = measured()
    write(stored, found)
    shown = attack("faces/eps-1")
    assert f"AUC {found.auc:.3f}** (interval {found.auc_low:.3f} to " in shown.told
    assert "no proof of safety" in shown.told
    assert "attack faces/eps-1 --count 3000 --results docs/results/membership" in shown.source
    at = found.true_positives[1]
    tighter, own, guess = shown.roc.axes[0].get_lines()  # one bound, that of the ledger
    ledger = load_card(find_checkpoint("faces/eps-1")).ledger
    exact = max_true_positive_rates(ledger, (tighter.get_xdata() / 100).tolist())
    assert tighter.get_ydata() == pytest.approx([100 * rate for rate in exact])
    limit = max_true_positive_rates(ledger, [0.01])[0]
    rate, told, most = shown.table[1]
    assert (rate, told) == ("1.0%", f"{at.rate:.2%} ({at.low:.2%} to {at.high:.2%})")
    assert limit <= float(most.rstrip("% ")) / 100 < limit + 1e-3
    assert limit < max_true_positive_rate(found.epsilon, found.delta, 0.01)
    assert own.get_xdata()[-1] == own.get_ydata()[-1] == 100
    assert guess.get_xdata()[0] == pytest.approx(0.025)
    heights = [patch.get_data().values for patch in shown.scores.axes[0].patches]
    assert [sum(own) for own in heights] == pytest.approx([100] * 4)


def test_a_checkpoint_without_a_bound_and_a_public_one_are_handled_in_words(stored):
    write(stored, measured("faces/eps-inf"), "faces/eps-inf")
    shown = attack("faces/eps-inf")
    assert "nothing bounds" in shown.told
    labels = [line.get_label() for line in shown.roc.axes[0].get_lines()]
    assert labels == ["this attack", "guessing"]
    public = attack("faces/public")
    assert "nothing to infer" in public.told
    assert (public.scores, public.roc, public.table) == (None, None, None)


def test_more_than_epsilon_allows_is_said_aloud_and_chance_is_called_chance(stored):
    epsilon = load_card(find_checkpoint("faces/eps-1")).epsilon
    for shift, words in (
        (5.0, f"more than the ledger of ε = {epsilon_text(epsilon)} allows** at 0.1%"),
        (0.3, "better than guessing"),
        (0.0, "cannot be told from guessing"),
        (-0.3, "worse than guessing"),
    ):
        write(stored, measured(shift=shift))
        assert words in attack("faces/eps-1").told


@pytest.mark.parametrize(
    "change",
    [
        None,
        "{",
        "[]",
        {"auc": math.nan},
        {"epsilon": 0.5},
        {"delta": 1e-5},
        {"weights": "0" * 64},
        {"checkpoint": "faces/eps-inf"},
        {"roc": []},
        {"histogram": {"edges": [0, 1]}},
        {"more": 1},
    ],
)
def test_what_is_no_result_of_these_weights_is_not_shown(stored, change):
    """The page names the command that measures them instead."""
    path = stored / result_file("faces/eps-1")
    if change is not None:
        text = change if isinstance(change, str) else json.dumps(measured().to_json() | change)
        path.write_text(text)
    shown = attack("faces/eps-1")
    assert "\npython -m dpwg attack faces/eps-1 --results docs/results/membership\n" in shown.told
    assert (shown.scores, shown.roc, shown.table) == (None, None, None)


def test_a_live_attack_tells_its_progress_and_is_that_of_its_seed():
    kinds = []

    def progress(step, *, desc, unit="") -> None:
        kinds.append(desc)

    found = attack_live("faces/eps-1", 50, 3, progress)
    assert "50 records of `faces-train`" in found.source
    assert "seed 3 picked the records" in found.source
    assert found.table[1][1] == "needs 100 held-out records"
    assert list(dict.fromkeys(kinds)) == [
        "loading models",
        *(f"faces-{split}: {work}" for split in ("train", "test") for work in WORK),
    ]
    # The releases share their weights, so that every score is 0: there is nothing to tell.
    assert found.told.startswith("**faces/eps-1: AUC 0.500**")


WORK = ("captions", "images", "losses")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 49}, "records=49"),
        ({"count": MAX_ATTACKED + 1}, "records="),
        ({"count": math.nan}, "records=nan"),
        ({"count": None}, "records=None"),
        ({"count": "many"}, "records=many"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 0.5}, r"seed=0\.5"),
        ({"name": "../faces/eps-1"}, "Expected checkpoint="),
        ({"name": "faces/public"}, "nothing to infer"),
    ],
)
def test_a_live_attack_with_absurd_input_is_an_error_in_words(change, message):
    with pytest.raises(gr.Error, match=message):
        attack_live(**{"name": "faces/eps-1", "count": 50, "seed": 0} | change)


def test_records_of_others_are_not_attacked_here(root, monkeypatch, stored):
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(root))
    write(stored, measured(data="made up"))
    shown = attack("faces/eps-1")
    assert "those records are private" in shown.told
    assert shown.roc is None
    for ask in (
        lambda: attack_live("faces/eps-1", 50, 0),
        lambda: next(nearest(None, "faces/eps-1", 50)),
    ):
        with pytest.raises(gr.Error, match="those records are private"):
            ask()


def test_groups_are_not_attacked_as_if_they_were_images():
    card = PrivacyCard.from_ledger(
        Ledger(entries=[LedgerEntry(sampling_rate=0.1, noise_multiplier=2.0, steps=9)]),
        delta=1e-3,
        dataset=DATA,
        records=9,
        max_grad_norm=0.1,
        public_inputs=[],
        group_column="hair",
    )
    assert "groups" in refusal("faces/mine", card)


def test_a_record_that_is_drawn_again_is_found():
    def progress(step, **_) -> None:
        pass

    known_NCHW = coarse_faces("train", 60, 32, progress)
    drawn = (known_NCHW[[7, 54]] * 255).round().byte().permute(0, 2, 3, 1).numpy()
    shown = Shown("faces/eps-1", drawn, drawn, "mine")
    frames = nearest(shown, "faces/public", 60, progress=progress)  # while it lives, files do
    found = next(frames)
    assert found.training[0][1] == "train record 7: 0.0 levels"
    assert found.unseen[0][1].startswith("test record ")
    assert "of the first 60 training records (of 1,000): **0.0 levels**" in found.told
    assert "Of the 2 pictures drawn, 2 are nearer to a training record" in found.told
    np.testing.assert_array_equal(np.asarray(Image.open(found.training[0][0])), found.picture)
    whole = face("train", 7).image(128).reshape(32, 4, 32, 4, 3).mean((1, 3))
    assert np.abs(found.picture[::16, ::16] - whole).max() <= 1


def test_without_a_picture_an_example_of_the_checkpoint_is_searched_for():
    found = next(nearest(None, "faces/public", 50))
    assert found.told.startswith("**An example of faces/public, seed 0.**")
    assert len(found.training) == len(found.unseen) == 3


@pytest.mark.parametrize("count", [49, MAX_SEARCHED + 1, math.nan, None, "x", 50.5])
def test_an_absurd_search_is_an_error_in_words(count):
    with pytest.raises(gr.Error, match="records="):
        next(nearest(None, "faces/eps-1", count))


def test_the_engines_audit_is_shown_where_it_was_run(tmp_path):
    assert "`python -m dpwg audit --results" in engine_told()
    path = tmp_path / results.ENGINE
    assert main(["audit", "--epsilons", "2", "--count", "400", "--results", str(path)]) == 0
    (run,) = results.engine_runs(tmp_path)
    assert 1.99 < run["ledger_epsilon"] <= 2
    assert run["proven_epsilon"] <= run["ledger_epsilon"]
    assert f"| {epsilon_text(run['ledger_epsilon'])} | " in engine_told()
    assert f"{run['correct']} of 40 |" in engine_told()
    assert "No ledger is refuted" in engine_told()
    facts = json.loads(path.read_text())
    facts["runs"][0]["proven_epsilon"] = 3.0
    path.write_text(json.dumps(facts))
    assert "the engine is broken" in engine_told()
    for text in ('{"runs": [{}]}', '{"runs": 1}', "{"):
        path.write_text(text)
        assert engine_told().startswith("The stored result is damaged.")
