"""Plots for the pages: values in, matplotlib figures out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from dpwg.measure.membership import MembershipAttack
from dpwg.privacy.accounting import Ledger, epsilon_text
from dpwg.privacy.curves import max_true_positive_rate, max_true_positive_rates
from dpwg.ui.families import unit_of
from dpwg.ui.results import Measure

TEAL, ORANGE, GREY, PALE = "#0f766e", "#c2410c", "#64748b", "#f1f5f9"
WIDTH, HEIGHT = 6.4, 4.2  # inches
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
    figure, axes = _axes(xlabel="epsilon (PLD)", ylabel=f"{measure.title}, {measure.unit}")
    line = [p for p in points if not unit_of(p.name)]
    for part, style in (
        (line, {"color": GREY, "linestyle": ":", "linewidth": 1.5}),
        ([p for p in line if p.epsilon], {"color": TEAL, "linewidth": 2}),
    ):
        axes.plot([x[p] for p in part], [p.value for p in part], **style)
    for point, place in x.items():
        chosen, unit = point.name == picked, unit_of(point.name)
        colour = ORANGE if chosen else TEAL
        axes.plot(
            place, point.value, "s" if unit else "o", color=colour, markersize=13 if chosen else 7
        )
        axes.annotate(
            f"{point.value:.3f}" + (f" per {unit}" if unit else ""),
            (place, point.value),
            xytext=(8, 7),
            textcoords="offset points",
            color=colour,
            weight="bold" if chosen else "normal",
        )
    names = {0.0: "public\nε = 0", None: "no\nprivacy"}
    ticks = {names.get(p.epsilon) or epsilon_text(p.epsilon): place for p, place in x.items()}
    axes.set_xscale("log")
    axes.set_xticks(list(ticks.values()), list(ticks))
    axes.minorticks_off()
    axes.margins(0.12, 0.15)
    return figure


def steps_figure(steps: Sequence[int], epsilons: Sequence[float], delta: float) -> Figure:
    """Epsilon as the steps of a run add up; points without a bound are left out."""
    figure, axes = _axes(xlabel="noisy steps", ylabel=f"epsilon (PLD) at δ = {delta:.3g}")
    shown = [(s, e) for s, e in zip(steps, epsilons, strict=True) if math.isfinite(e)]
    axes.plot([s for s, _ in shown], [e for _, e in shown], color=TEAL, linewidth=2)
    if shown:
        axes.plot(*shown[-1], "o", color=ORANGE, markersize=9)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.set(xlim=(0, max(steps) * 1.04), ylim=(0, None))
    return figure


def loss_figure(steps: Sequence[int], losses: Sequence[float]) -> Figure:
    """The loss of a private run, marked as private."""
    figure, axes = _axes(xlabel="noisy steps", ylabel="PRIVATE: per-code NLL, nats")
    axes.plot(steps, losses, "o-", color=ORANGE, linewidth=2, markersize=4)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    return figure


def trade_off_figure(
    false_positive_rates: Sequence[float],
    by_pair: Sequence[float],
    by_mechanism: Sequence[float],
    pair: str,
) -> Figure:
    """The most true positives at each rate of false positives: by (epsilon, delta), and exactly."""
    figure, axes = _axes(
        xlabel="false positives, %", ylabel="true positives at most, %", ylim=(0, 102)
    )
    false, pairs, exact = (
        100 * np.asarray(side) for side in (false_positive_rates, by_pair, by_mechanism)
    )
    axes.fill_between(false, exact, 102, color=PALE)
    axes.plot(false, pairs, color=ORANGE, linewidth=2, label=pair)
    axes.plot(false, exact, color=TEAL, linewidth=2, label="this mechanism")
    axes.plot(false, false, color=GREY, linestyle=":", label="guessing")
    axes.set(xscale="log", xlim=(false[0], 100))
    _percent(axes.set_xticks, false[0])
    _legend(axes, "upper left")
    return figure


def scores_figure(attack: MembershipAttack) -> Figure:
    """How the scores of members and non-members are spread, each as a share of its own kind."""
    joined = 1 if min(attack.members, attack.nonmembers) >= 1000 else 3
    *starts, end = attack.histogram["edges"]
    edges, highest = [*starts[::joined], end], 0.0
    figure, axes = _axes(
        xlabel="score: nats a code less than the public model", ylabel="records, % of their kind"
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
    _legend(axes, "upper left")
    return figure


def roc_figure(attack: MembershipAttack, ledger: Ledger) -> Figure:
    """True against false positives on log axes: the attack, guessing, and what bounds all attacks,
    by (epsilon, delta) and, tighter, by the mechanism of the ledger.
    """
    figure, axes = _axes(xlabel="false positives, %", ylabel="true positives, %")
    lowest = 0.5 / attack.nonmembers
    rates = np.geomspace(lowest, 1, 200)
    percent = 100 * rates
    if attack.epsilon is not None:
        pair = [max_true_positive_rate(attack.epsilon, attack.delta, rate) for rate in rates]
        exact = 100 * np.array(max_true_positive_rates(ledger, rates.tolist()))
        label = f"most at ε = {epsilon_text(attack.epsilon)}, δ = {attack.delta:g}"
        axes.fill_between(percent, exact, 200, color=PALE)
        axes.plot(
            percent, 100 * np.array(pair), color=TEAL, linestyle="--", linewidth=1.5, label=label
        )
        axes.plot(percent, exact, color=TEAL, linewidth=2, label="most by this mechanism")
    false, true = (100 * np.array(side) for side in zip(*attack.roc, strict=True))
    axes.step(false, true, where="post", color=ORANGE, linewidth=2, label="this attack")
    axes.plot(percent, percent, color=GREY, linestyle=":", label="guessing")
    axes.set(xscale="log", yscale="log", xlim=(100 * lowest, 100), ylim=(100 * lowest, 115))
    for ticks in (axes.set_xticks, axes.set_yticks):
        _percent(ticks, 100 * lowest)
    _legend(axes, "lower right")
    return figure


def clipping_figure(noise_multiplier: float, records: int = 12) -> Figure:
    """A step of DP-SGD in two dimensions: arrows that are clipped, their sum, and the noise."""
    generator = np.random.default_rng(0)
    gradients_R2 = generator.normal((0.9, 0.6), 1.0, (records, 2))
    clipped_R2 = gradients_R2 / np.maximum(np.linalg.norm(gradients_R2, axis=1, keepdims=True), 1)
    total_2 = clipped_R2.sum(0)
    figure = Figure(figsize=(WIDTH, 3.5), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, title in (
        (left, "each record's gradient is clipped …"),
        (right, "… and noise is added to their sum"),
    ):
        axes.set_title(title, fontsize=12)
        axes.set_aspect("equal")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("#cbd5e1")
    left.add_patch(Circle((0, 0), 1, fill=False, color=TEAL, linewidth=1.5))
    for vectors_R2, colour in ((gradients_R2, "#cbd5e1"), (clipped_R2, TEAL)):
        for tip_2 in vectors_R2:
            _arrow(left, tip_2, colour)
    reach = 1.1 * float(np.abs(gradients_R2).max())
    left.set(xlim=(-reach, reach), ylim=(-reach, reach))
    for times, shade in ((2, "#ffedd5"), (1, "#fed7aa")):
        right.add_patch(Circle(tuple(total_2), times * noise_multiplier, color=shade, zorder=0))
    _arrow(right, total_2, TEAL)
    noised_2 = total_2 + noise_multiplier * generator.normal(size=2)
    right.plot(*noised_2, "o", color=ORANGE, markersize=8)
    reach = float(np.abs(total_2).max()) + 2.4 * noise_multiplier
    right.set(xlim=(-0.1 * reach, reach), ylim=(-0.1 * reach, reach))
    return figure


def _arrow(axes: Any, tip_2: np.ndarray, colour: str) -> None:
    axes.annotate(
        "", tuple(tip_2), (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.5}
    )


def _axes(**settings: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=120, layout="constrained")
    axes = figure.add_subplot(**settings)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_fontsize(12)
    axes.tick_params(labelsize=11)
    return figure, axes


def _legend(axes: Any, place: str) -> None:
    axes.legend(frameon=True, framealpha=0.9, edgecolor="none", loc=place)


def _percent(set_ticks: Any, lowest: float) -> None:
    ticks = [tick for tick in PERCENT if tick >= lowest * (1 - 1e-9)]
    set_ticks(ticks, [f"{tick:g}" for tick in ticks])
