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

TEAL, ORANGE, GREY = "#0f766e", "#c2410c", "#64748b"
WIDTH, HEIGHT = 6.4, 4.2  # inches


def quality_figure(measure: Measure, picked: str | None) -> Figure:
    """A measure against epsilon, on a log axis with 0 and infinity set apart at its ends.

    An epsilon for something else than an image, as for a person, is not on the others' line.
    """
    points = sorted(measure.points, key=lambda p: math.inf if p.epsilon is None else p.epsilon)
    finite = [p.epsilon for p in points if p.epsilon]
    low, high = (min(finite), max(finite)) if finite else (1.0, 1.0)
    places = {0.0: low / 4, None: high * 4}
    figure, axes = _axes()
    x = {p: p.epsilon or places[p.epsilon] for p in points}
    line = [p for p in points if not unit_of(p.name)]
    bounded = [p for p in line if p.epsilon]
    for part, style in (
        (line, {"color": GREY, "linestyle": ":", "linewidth": 1.5}),
        (bounded, {"color": TEAL, "linewidth": 2}),
    ):
        axes.plot([x[p] for p in part], [p.value for p in part], **style)
    for point, place in x.items():
        chosen, unit = point.name == picked, unit_of(point.name)
        colour, size = (ORANGE, 13) if chosen else (TEAL, 7)
        axes.plot(place, point.value, "s" if unit else "o", color=colour, markersize=size)
        axes.annotate(
            f"{point.value:.3f}" + (f" per {unit}" if unit else ""),
            (place, point.value),
            xytext=(8, 7),
            textcoords="offset points",
            ha="left",
            color=colour,
            weight="bold" if chosen else "normal",
        )
    ticks = {
        "public\nε = 0"
        if p.epsilon == 0
        else "no\nprivacy"
        if p.epsilon is None
        else epsilon_text(p.epsilon): place
        for p, place in x.items()
    }
    axes.set_xscale("log")
    axes.set_xticks(list(ticks.values()), list(ticks))
    axes.minorticks_off()
    axes.margins(0.12, 0.15)
    axes.set(xlabel="epsilon (PLD)", ylabel=f"{measure.title}, {measure.unit}")
    return figure


def steps_figure(steps: Sequence[int], epsilons: Sequence[float], delta: float) -> Figure:
    """Epsilon as the steps of a run add up; points without a bound are left out."""
    figure, axes = _axes()
    shown = [(s, e) for s, e in zip(steps, epsilons, strict=True) if math.isfinite(e)]
    axes.plot([s for s, _ in shown], [e for _, e in shown], color=TEAL, linewidth=2)
    if shown:
        axes.plot(*shown[-1], "o", color=ORANGE, markersize=9)
    axes.set(xlabel="noisy steps", ylabel=f"epsilon (PLD) at δ = {delta:.3g}")
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.set_xlim(0, max(steps) * 1.04)
    axes.set_ylim(bottom=0)
    return figure


def loss_figure(steps: Sequence[int], losses: Sequence[float]) -> Figure:
    """The loss of a private run, marked as private."""
    figure, axes = _axes()
    axes.plot(steps, losses, "o-", color=ORANGE, linewidth=2, markersize=4)
    axes.set(xlabel="noisy steps", ylabel="PRIVATE: loss, nats a code")
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    return figure


def trade_off_figure(
    false_positive_rates: Sequence[float],
    by_pair: Sequence[float],
    by_mechanism: Sequence[float],
    pair: str,
) -> Figure:
    """The most true positives at each rate of false positives: by (epsilon, delta), and exactly."""
    figure, axes = _axes()
    percent = [100 * rate for rate in false_positive_rates]
    axes.fill_between(percent, [100 * rate for rate in by_mechanism], 102, color="#f1f5f9")
    axes.plot(percent, [100 * r for r in by_pair], color=ORANGE, linewidth=2, label=pair)
    axes.plot(
        percent, [100 * r for r in by_mechanism], color=TEAL, linewidth=2, label="this mechanism"
    )
    axes.plot(percent, percent, color=GREY, linestyle=":", label="guessing")
    axes.set_xscale("log")
    axes.set_xticks([0.01, 0.1, 1, 10, 100], ["0.01", "0.1", "1", "10", "100"])
    axes.set(xlabel="false positives, %", ylabel="true positives at most, %", ylim=(0, 102))
    axes.set_xlim(percent[0], 100)
    axes.legend(frameon=True, framealpha=0.9, edgecolor="none", loc="upper left")
    return figure


def scores_figure(attack: MembershipAttack) -> Figure:
    """How the scores of members and non-members are spread, each as a share of its own kind."""
    figure, axes = _axes()
    joined = 1 if min(attack.members, attack.nonmembers) >= 1000 else 3
    *starts, end = attack.histogram["edges"]
    edges = [*starts[::joined], end]
    highest = 0.0
    for name, total, colour, label in (
        ("members", attack.members, ORANGE, "training records"),
        ("nonmembers", attack.nonmembers, TEAL, "held-out records"),
    ):
        counts = np.asarray(attack.histogram[name])
        percent = 100 * np.add.reduceat(counts, range(0, len(counts), joined)) / total
        highest = max(highest, percent.max())
        axes.stairs(percent, edges, fill=True, color=colour, alpha=0.25)
        axes.stairs(percent, edges, color=colour, linewidth=2, label=label)
    axes.set(
        xlabel="score: nats a code less than the public model",
        ylabel="records, % of their kind",
        ylim=(0, 1.3 * highest),
    )
    axes.legend(frameon=True, framealpha=0.9, edgecolor="none", loc="upper left")
    return figure


def roc_figure(attack: MembershipAttack, ledger: Ledger) -> Figure:
    """True against false positives on log axes: the attack, guessing, and what bounds all attacks,
    by (epsilon, delta) and, tighter, by the mechanism of the ledger.
    """
    figure, axes = _axes()
    lowest = 0.5 / attack.nonmembers
    rates = np.geomspace(lowest, 1, 200)
    if attack.epsilon is not None:
        by_pair = [
            100 * max_true_positive_rate(attack.epsilon, attack.delta, float(rate))
            for rate in rates
        ]
        by_mechanism = [100 * rate for rate in max_true_positive_rates(ledger, rates.tolist())]
        label = f"most at ε = {epsilon_text(attack.epsilon)}, δ = {attack.delta:g}"
        axes.fill_between(100 * rates, by_mechanism, 200, color="#f1f5f9")
        axes.plot(100 * rates, by_pair, color=TEAL, linestyle="--", linewidth=1.5, label=label)
        axes.plot(
            100 * rates, by_mechanism, color=TEAL, linewidth=2, label="most by this mechanism"
        )
    false, true = (100 * np.array(side) for side in zip(*attack.roc, strict=True))
    axes.step(false, true, where="post", color=ORANGE, linewidth=2, label="this attack")
    axes.plot(100 * rates, 100 * rates, color=GREY, linestyle=":", label="guessing")
    axes.set(xscale="log", yscale="log", xlabel="false positives, %", ylabel="true positives, %")
    axes.set(xlim=(100 * lowest, 100), ylim=(100 * lowest, 115))
    ticks = [tick for tick in (0.001, 0.01, 0.1, 1.0, 10.0, 100.0) if tick > 100 * lowest]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.legend(frameon=True, framealpha=0.9, edgecolor="none", loc="lower right")
    return figure


def clipping_figure(noise_multiplier: float, records: int = 12) -> Figure:
    """A step of DP-SGD in two dimensions: arrows that are clipped, their sum, and the noise."""
    generator = np.random.default_rng(0)
    gradients_R2 = generator.normal((0.9, 0.6), 1.0, (records, 2))
    norms_R1 = np.linalg.norm(gradients_R2, axis=1, keepdims=True)
    clipped_R2 = gradients_R2 / np.maximum(norms_R1, 1)
    figure = Figure(figsize=(WIDTH, 3.5), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, vectors_R2, title in (
        (left, gradients_R2, "each record's gradient is clipped …"),
        (right, clipped_R2, "… and noise is added to their sum"),
    ):
        axes.set_title(title, fontsize=12)
        axes.set_aspect("equal")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("#cbd5e1")
        if axes is left:
            axes.add_patch(Circle((0, 0), 1, fill=False, color=TEAL, linewidth=1.5))
            for whole_2, kept_2 in zip(vectors_R2, clipped_R2, strict=True):
                _arrow(axes, whole_2, "#cbd5e1")
                _arrow(axes, kept_2, TEAL)
            reach = 1.1 * float(np.abs(gradients_R2).max())
            axes.set(xlim=(-reach, reach), ylim=(-reach, reach))
    total_2 = clipped_R2.sum(0)
    for times, shade in ((2, "#ffedd5"), (1, "#fed7aa")):
        right.add_patch(Circle(tuple(total_2), times * noise_multiplier, color=shade, zorder=0))
    _arrow(right, total_2, TEAL)
    right.plot(
        *(total_2 + noise_multiplier * generator.normal(size=2)), "o", color=ORANGE, markersize=8
    )
    reach = float(np.abs(total_2).max()) + 2.4 * noise_multiplier
    right.set(xlim=(-0.1 * reach, reach), ylim=(-0.1 * reach, reach))
    return figure


def _arrow(axes: Any, tip_2: np.ndarray, colour: str) -> None:
    axes.annotate(
        "", tuple(tip_2), (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.5}
    )


def _axes() -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_fontsize(12)
    axes.tick_params(labelsize=11)
    return figure, axes
