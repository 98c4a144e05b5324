"""Plots for the pages: values in, matplotlib figures out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator

from dpwg.measure.membership import MembershipAttack
from dpwg.privacy.accounting import Ledger, epsilon_text
from dpwg.privacy.curves import max_true_positive_rate, max_true_positive_rates
from dpwg.ui.families import unit_of
from dpwg.ui.results import Measure

TEAL, ORANGE, GREY, PALE = "#0f766e", "#c2410c", "#64748b", "#f1f5f9"
PERCENT = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
"""Ticks of an axis of rates."""


def quality_figure(measure: Measure, picked: str | None) -> Figure:
    """A measure against epsilon, on a log axis with 0 and infinity set apart at its ends.

    An epsilon for something else than an image, as for a person, is not on the others' line.
    """
    points = sorted(measure.points, key=lambda p: math.inf if p.epsilon is None else p.epsilon)
    finite = [p.epsilon for p in points if p.epsilon] or [1.0]
    ends = {0.0: min(finite) / 4, None: 4 * max(finite)}
    x = {p: p.epsilon or ends[p.epsilon] for p in points}
    figure, axes = _axes("epsilon (PLD)", f"{measure.title}, {measure.unit}")
    line = [p for p in points if not unit_of(p.name)]
    bounded = [p for p in line if p.epsilon]
    axes.plot([x[p] for p in line], [p.value for p in line], ":", color=GREY)
    axes.plot([x[p] for p in bounded], [p.value for p in bounded], color=TEAL)
    for point, place in x.items():
        chosen, unit = point.name == picked, unit_of(point.name)
        colour, size, weight = (ORANGE, 13, "bold") if chosen else (TEAL, 7, "normal")
        axes.plot(place, point.value, "s" if unit else "o", color=colour, markersize=size)
        told = f"{point.value:.3f}" + (f" per {unit}" if unit else "")
        at: dict[str, Any] = {"xytext": (8, 7), "textcoords": "offset points"}
        axes.annotate(told, (place, point.value), color=colour, weight=weight, **at)
    names = {0.0: "public\nε = 0", None: "no\nprivacy"}
    ticks = {names.get(p.epsilon) or epsilon_text(p.epsilon): place for p, place in x.items()}
    axes.set_xscale("log")
    axes.set_xticks(list(ticks.values()), list(ticks))
    axes.minorticks_off()
    axes.margins(0.12, 0.15)
    return figure


def steps_figure(steps: Sequence[int], epsilons: Sequence[float], delta: float) -> Figure:
    """Epsilon as the steps of a run add up; points without a bound are left out."""
    figure, axes = _axes("noisy steps", f"epsilon (PLD) at δ = {delta:.3g}", integers=True)
    shown = [(s, e) for s, e in zip(steps, epsilons, strict=True) if math.isfinite(e)]
    axes.plot([s for s, _ in shown], [e for _, e in shown], color=TEAL)
    if shown:
        axes.plot(*shown[-1], "o", color=ORANGE, markersize=9)
    axes.set(xlim=(0, max(steps) * 1.04), ylim=(0, None))
    return figure


def loss_figure(steps: Sequence[int], losses: Sequence[float]) -> Figure:
    """The loss of a private run, marked as private."""
    figure, axes = _axes("noisy steps", "PRIVATE: per-code NLL, nats", integers=True)
    axes.plot(steps, losses, "o-", color=ORANGE, markersize=4)
    return figure


def trade_off_figure(ledger: Ledger, epsilon: float, delta: float) -> Figure:
    """The most true positives at each rate of false positives: by (epsilon, delta), and exactly."""
    rates = np.geomspace(1e-4, 1, 200)
    figure, axes = _axes("false positives, %", "true positives at most, %")
    pair = [100 * max_true_positive_rate(epsilon, delta, rate) for rate in rates]
    label = f"(ε, δ) = ({epsilon_text(epsilon)}, {delta:g})"
    axes.plot(100 * rates, pair, color=ORANGE, label=label)
    _bound(axes, ledger, rates)
    axes.plot(100 * rates, 100 * rates, ":", color=GREY, label="guessing")
    axes.set_ylim(0, 102)
    _rates(axes, "x", rates[0])
    axes.legend(loc="upper left")
    return figure


def scores_figure(attack: MembershipAttack) -> Figure:
    """How the scores of members and non-members are spread, each as a share of its own kind."""
    joined = 1 if min(attack.members, attack.nonmembers) >= 1000 else 3
    *starts, end = attack.histogram["edges"]
    edges, highest = [*starts[::joined], end], 0.0
    figure, axes = _axes(
        "score: nats a code less than the public model", "records, % of their kind"
    )
    for name, total, colour, label in (
        ("members", attack.members, ORANGE, "training records"),
        ("nonmembers", attack.nonmembers, TEAL, "held-out records"),
    ):
        counts = np.asarray(attack.histogram[name])
        percent = 100 * np.add.reduceat(counts, range(0, len(counts), joined)) / total
        highest = max(highest, percent.max())
        axes.stairs(percent, edges, fill=True, color=colour, alpha=0.25)
        axes.stairs(percent, edges, color=colour, linewidth=2, label=label)
    axes.set_ylim(0, 1.3 * highest)
    axes.legend(loc="upper left")
    return figure


def roc_figure(attack: MembershipAttack, ledger: Ledger) -> Figure:
    """True against false positives on log axes: the attack, guessing, and what the ledger's steps
    allow any attack.
    """
    figure, axes = _axes("false positives, %", "true positives, %")
    rates = np.geomspace(0.5 / attack.nonmembers, 1, 200)
    if attack.epsilon is not None:
        _bound(axes, ledger, rates)
    false, true = (100 * np.array(side) for side in zip(*attack.roc, strict=True))
    axes.step(false, true, where="post", color=ORANGE, label="this attack")
    axes.plot(100 * rates, 100 * rates, ":", color=GREY, label="guessing")
    _rates(axes, "x", rates[0])
    _rates(axes, "y", rates[0])
    axes.set_ylim(top=115)
    axes.legend(loc="lower right")
    return figure


def clipping_figure(noise_multiplier: float, records: int = 12) -> Figure:
    """A step of DP-SGD in two dimensions: arrows that are clipped, their sum, and the noise."""
    generator = np.random.default_rng(0)
    gradients_R2 = generator.normal((0.9, 0.6), 1.0, (records, 2))
    clipped_R2 = gradients_R2 / np.maximum(np.linalg.norm(gradients_R2, axis=1, keepdims=True), 1)
    total_2 = clipped_R2.sum(0)
    noised_2 = total_2 + noise_multiplier * generator.normal(size=2)
    figure = Figure(figsize=(6.4, 3.5), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.set_title("each record's gradient is clipped …", fontsize=12)
    right.set_title("… and noise is added to their sum", fontsize=12)
    left.add_patch(Circle((0, 0), 1, fill=False, color=TEAL, linewidth=1.5))
    for vectors_R2, colour in ((gradients_R2, "#cbd5e1"), (clipped_R2, TEAL)):
        for tip_2 in vectors_R2:
            _arrow(left, tip_2, colour)
    for times, shade in ((2, "#ffedd5"), (1, "#fed7aa")):
        right.add_patch(Circle(tuple(total_2), times * noise_multiplier, color=shade, zorder=0))
    _arrow(right, total_2, TEAL)
    right.plot(*noised_2, "o", color=ORANGE, markersize=8)
    near = 1.1 * float(np.abs(gradients_R2).max())
    far = float(np.abs(total_2).max()) + 2.4 * noise_multiplier
    for axes, sides in ((left, (-near, near)), (right, (-0.1 * far, far))):
        axes.set_aspect("equal")
        axes.set(xticks=[], yticks=[], xlim=sides, ylim=sides)
        axes.spines[:].set_color("#cbd5e1")
    return figure


def _arrow(axes: Any, tip_2: np.ndarray, colour: str) -> None:
    look = {"arrowstyle": "-|>", "color": colour, "lw": 1.5}
    axes.annotate("", tuple(tip_2), (0, 0), arrowprops=look)


def _axes(xlabel: str, ylabel: str, *, integers: bool = False) -> tuple[Figure, Any]:
    figure = Figure(figsize=(6.4, 4.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel, fontsize=12)
    axes.set_ylabel(ylabel, fontsize=12)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=11)
    axes.set_prop_cycle(linewidth=[2])
    if integers:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure, axes


def _bound(axes: Any, ledger: Ledger, rates: np.ndarray) -> None:
    """The most that any attack on these very steps can detect."""
    most = 100 * np.array(max_true_positive_rates(ledger, rates.tolist()))
    axes.fill_between(100 * rates, most, 200, color=PALE)
    axes.plot(100 * rates, most, color=TEAL, label="most by this ledger")


def _rates(axes: Any, side: str, lowest: float) -> None:
    """A log axis of rates in percent."""
    ticks = [tick for tick in PERCENT if tick >= 100 * lowest * (1 - 1e-9)]
    axes.set(**{f"{side}scale": "log", f"{side}lim": (100 * lowest, 100)})
    axes.set(**{f"{side}ticks": ticks, f"{side}ticklabels": [f"{tick:g}" for tick in ticks]})
