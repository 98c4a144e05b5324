"""Membership inference against a checkpoint: how well losses tell training records from others.

The score of a record is how much better the checkpoint predicts it than the public model that it
came from (a loss calibrated by a reference model, arXiv 2111.08440). Where epsilon bounds every
attack, this is one attack: what it finds is a lower bound on what could be found. Nearest training
records of a generated image are here too. All of it reads private records: show it only where, as
for the synthetic faces, nobody is in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat
from scipy import stats
from torch import Tensor

from dpwg.config import Config, Share
from dpwg.measure.quality import losses_of
from dpwg.method.generator import Generator
from dpwg.privacy.curves import max_true_positive_rate
from dpwg.release.folder import Release
from dpwg.training.examples import Examples
from dpwg.training.run_state import fingerprint

REFERENCE = "faces/public"
"""The public model that losses are calibrated by, unless another one is named."""
COUNT = 5000
"""Records of each kind, unless another number is asked for."""
RATES = (0.001, 0.01)
"""False-positive rates at which true-positive rates are told."""
CONFIDENCE = 0.95
BINS = 60
POINTS = 400


@dataclass(frozen=True, kw_only=True)
class TruePositives(Config):
    """True positives at a false-positive rate: Clopper-Pearson interval, and what epsilon allows.

    The interval is that of the detection rate with the threshold as found; the threshold itself is
    a quantile of the non-members.
    """

    false_positive_rate: Share
    rate: Share
    low: Share
    high: Share
    allowed: Share


@dataclass(frozen=True, kw_only=True)
class MembershipAttack(Config):
    """What a membership attack by loss found; scores are in nats a code, higher is "member".

    `weights` is the SHA-256 of the weights that were attacked: a checkpoint of the same name and
    other weights is another one. Members are of the set `data`, non-members of `others`. `roc`
    holds (false-positive rate, true-positive rate) pairs; `histogram` the edges and the counts of
    members and non-members.
    """

    checkpoint: str
    weights: str
    reference: str
    data: str
    others: str
    epsilon: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    delta: Share
    members: Annotated[int, Field(ge=2)]
    nonmembers: Annotated[int, Field(ge=2)]
    auc: Share
    auc_low: Share
    auc_high: Share
    true_positives: Annotated[tuple[TruePositives, ...], Field(min_length=1)]
    roc: Annotated[tuple[tuple[Share, Share], ...], Field(min_length=1)]
    histogram: dict[str, tuple[FiniteFloat, ...]]

    def __post_init__(self) -> None:
        super().__post_init__()
        edges, *counts = (self.histogram.get(k, ()) for k in ("edges", "members", "nonmembers"))
        in_all = [sum(own) for own in counts if len(own) == len(edges) - 1 and min(own) >= 0]
        if in_all != [self.members, self.nonmembers]:
            raise ValueError("Expected as many records in the histogram as were attacked.")

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """The inverse of `to_json`. Raises ValueError for what no attack can have found."""
        try:
            return super().from_json(values)
        except TypeError as error:
            raise ValueError(f"Expected the result of a membership attack: {error}.") from error


def result_file(checkpoint: str) -> str:
    """The name of a checkpoint's result file: faces-eps-10.json for `faces/eps-10`."""
    return checkpoint.replace("/", "-") + ".json"


def check_reference(release: Release, public: Release) -> None:
    """Raise ValueError unless losses of `release` can be calibrated by those of `public`."""
    if public.card.kind != "public":
        raise ValueError("Expected a public reference: a private one has secrets of its own.")
    if fingerprint(public.tokenizer) != fingerprint(release.tokenizer):
        raise ValueError(
            "Expected a reference with the checkpoint's tokenizer: their losses are of other codes."
        )
    encoders = (
        (encoder.kind, encoder.digest, encoder.max_tokens)
        for encoder in (public.text_encoder, release.text_encoder)
    )
    if len(set(encoders)) > 1:
        raise ValueError(
            "Expected a reference with the checkpoint's text encoder: it would read nothing."
        )


def calibrated_scores(model: Generator, public: Generator, examples: Examples) -> Tensor:
    """How much less loss than the public model a checkpoint has on each record, float32 (N,)."""
    return losses_of(public, examples) - losses_of(model, examples)


def membership_attack(
    members_N: NDArray[np.float64],
    others_N: NDArray[np.float64],
    *,
    checkpoint: str,
    weights: str,
    reference: str,
    data: str,
    others: str,
    epsilon: float | None,
    delta: float,
) -> MembershipAttack:
    """Sum up an attack from the scores of training records and of records that were left out."""
    for name, scores_N in (("members", members_N), ("others", others_N)):
        if scores_N.ndim != 1 or len(scores_N) < 2 or not np.isfinite(scores_N).all():
            raise ValueError(
                f"Expected two or more finite scores of {name}, found shape {scores_N.shape}."
            )
    auc, half = _area(members_N, others_N)
    edges = np.histogram_bin_edges(np.concatenate((members_N, others_N)), bins=BINS)
    return MembershipAttack(
        checkpoint=checkpoint,
        weights=weights,
        reference=reference,
        data=data,
        others=others,
        epsilon=epsilon,
        delta=delta,
        members=len(members_N),
        nonmembers=len(others_N),
        auc=auc,
        auc_low=max(0.0, auc - half),
        auc_high=min(1.0, auc + half),
        true_positives=tuple(
            _true_positives(members_N, others_N, rate, epsilon, delta) for rate in RATES
        ),
        roc=_roc(members_N, others_N),
        histogram={
            "edges": tuple(edges.tolist()),
            "members": tuple(np.histogram(members_N, edges)[0].tolist()),
            "nonmembers": tuple(np.histogram(others_N, edges)[0].tolist()),
        },
    )


def nearest_records(image_BCHW: Tensor, records_NCHW: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` nearest records of each image: indices (B, count) and root mean squared errors.

    Images are (., 3, S, S) in [0, 1] of one size; distances are those of the pixels.
    """
    if image_BCHW.shape[1:] != records_NCHW.shape[1:]:
        raise ValueError(
            f"Expected images of one size, found {tuple(image_BCHW.shape[1:])} and "
            f"{tuple(records_NCHW.shape[1:])}; resize one of them."
        )
    if not 1 <= count <= len(records_NCHW):
        raise ValueError(f"Expected count={count} in 1..{len(records_NCHW)}, the records.")
    image_BD, records_ND = image_BCHW.flatten(1).double(), records_NCHW.flatten(1).double()
    distance_BN = torch.cdist(image_BD, records_ND) / image_BD.shape[1] ** 0.5
    nearest = distance_BN.topk(count, largest=False)
    return nearest.indices, nearest.values.float()


def _area(members_N: NDArray[np.float64], others_N: NDArray[np.float64]) -> tuple[float, float]:
    """Area under the ROC curve and the half width of its interval (Hanley and McNeil 1982)."""
    m, n = len(members_N), len(others_N)
    ranks = stats.rankdata(np.concatenate((members_N, others_N)))[:m]
    auc = float((ranks.sum() - m * (m + 1) / 2) / (m * n))
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = (auc * (1 - auc) + (m - 1) * (q1 - auc**2) + (n - 1) * (q2 - auc**2)) / (m * n)
    return auc, float(stats.norm.ppf((1 + CONFIDENCE) / 2) * max(variance, 0.0) ** 0.5)


def _true_positives(
    members_N: NDArray[np.float64],
    others_N: NDArray[np.float64],
    rate: float,
    epsilon: float | None,
    delta: float,
) -> TruePositives:
    allowed_alarms = int(rate * len(others_N))
    threshold = np.sort(others_N)[::-1][allowed_alarms]
    found = int((members_N > threshold).sum())
    interval = stats.binomtest(found, len(members_N)).proportion_ci(CONFIDENCE, "exact")
    return TruePositives(
        false_positive_rate=rate,
        rate=found / len(members_N),
        low=float(interval.low),
        high=float(interval.high),
        allowed=max_true_positive_rate(epsilon, delta, rate),
    )


def _roc(
    members_N: NDArray[np.float64], others_N: NDArray[np.float64]
) -> tuple[tuple[float, float], ...]:
    """Rates over thresholds from the highest score down, thinned to `POINTS`, low rates kept."""
    thresholds = np.unique(np.concatenate((members_N, others_N)))[::-1]
    false = 1 - np.searchsorted(np.sort(others_N), thresholds, side="left") / len(others_N)
    true = 1 - np.searchsorted(np.sort(members_N), thresholds, side="left") / len(members_N)
    marks = np.geomspace(1 / len(others_N), 1, POINTS)
    kept = np.unique(np.searchsorted(false, marks, side="left").clip(max=len(false) - 1))
    points = [(0.0, 0.0), *zip(false[kept].tolist(), true[kept].tolist(), strict=True), (1.0, 1.0)]
    return tuple(points)
