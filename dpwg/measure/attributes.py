"""Do pictures of people show what their captions name? Read by classifiers of real photographs.

A reader is a logistic regression on `measure.features`, trained on real images of the training set
with their official attributes. How often it is right about real test images, whose attributes are
known, stands beside how often it finds in a picture what the picture's caption says.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

HAIR = {"Black_Hair": "black", "Blond_Hair": "blond", "Brown_Hair": "brown", "Gray_Hair": "gray"}
CLASSES: dict[str, tuple[str, ...]] = {
    "gender": ("woman", "man"),
    "smile": ("no", "yes"),
    "glasses": ("no", "yes"),
    "hair": tuple(HAIR.values()),
    "hat": ("no", "yes"),
    "beard": ("no", "yes"),
}
"""What is read, and its classes; `beard` of men alone."""


def labels(attributes: Mapping[str, bool]) -> dict[str, int]:
    """The classes that CelebA's official attributes of an image decide; those in doubt are left
    out.
    """
    man, hat = attributes["Male"], attributes["Wearing_Hat"]
    known = {"gender": int(man), "glasses": int(attributes["Eyeglasses"]), "hat": int(hat)}
    known["smile"] = int(attributes["Smiling"])
    colours = [place for place, name in enumerate(HAIR) if attributes[name]]
    if len(colours) == 1 and not hat and not attributes["Bald"]:
        known["hair"] = colours[0]
    if man:
        known["beard"] = int(not attributes["No_Beard"])
    return known


def captions(count: int, seed: int = 0) -> list[tuple[str, dict[str, int]]]:
    """Captions with the classes that they name, every class of everything equally often."""
    rng = random.Random(seed)
    kinds = [*itertools.product((0, 1), (0, 1), range(len(HAIR)))]
    drawn = [kinds[place % len(kinds)] for place in range(count)]
    rng.shuffle(drawn)
    answers = []
    for man, smile, hair in drawn:
        named = {"gender": man, "smile": smile, "hair": hair}
        named |= {"glasses": int(rng.random() < 0.5), "hat": int(rng.random() < 0.3)}
        worn = ["glasses"] * named["glasses"]
        if named["hat"]:
            worn.append("a hat")
            del named["hair"]
        traits = [] if named["hat"] else [f"{CLASSES['hair'][hair]} hair"]
        if man:
            named["beard"] = int(rng.random() < 0.5)
            traits += ["a beard"] * named["beard"]
        text = f"a {'smiling ' if smile else 'serious '}{'man' if man else 'woman'}"
        text += f" with {' and '.join(traits)}" if traits else ""
        text += f" wearing {' and '.join(worn)}" if worn else ""
        answers.append((text, named))
    return answers


@dataclass(frozen=True)
class Reader:
    """Standardised features -> the class with the largest score."""

    mean_D: Tensor
    scale_D: Tensor
    weight_DC: Tensor
    bias_C: Tensor

    def __call__(self, features_ND: np.ndarray) -> np.ndarray:
        """The class of every picture, int64 (N,)."""
        x_ND = (torch.from_numpy(features_ND) - self.mean_D) / self.scale_D
        return (x_ND @ self.weight_DC + self.bias_C).argmax(1).numpy()


def train_reader(
    features_ND: np.ndarray, class_N: Sequence[int], classes: int, *, decay: float = 3e-3
) -> Reader:
    """Logistic regression in which every class weighs the same, with weight decay, by L-BFGS."""
    x_ND, y_N = torch.from_numpy(features_ND), torch.tensor(class_N)
    mean_D, scale_D = x_ND.mean(0), x_ND.std(0) + 1e-6
    x_ND = (x_ND - mean_D) / scale_D
    share_C = torch.bincount(y_N, minlength=classes).clamp(min=1) / len(y_N)
    weight_DC = torch.zeros(x_ND.shape[1], classes, requires_grad=True)
    bias_C = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight_DC, bias_C], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        error = F.cross_entropy(x_ND @ weight_DC + bias_C, y_N, weight=1 / share_C)
        total: Tensor = error + decay * weight_DC.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    return Reader(mean_D, scale_D, weight_DC.detach(), bias_C.detach())


def train_readers(features_ND: np.ndarray, known: Sequence[Mapping[str, int]]) -> dict[str, Reader]:
    """A reader of each of CLASSES, from the images of which it is known."""
    readers = {}
    for name, classes in CLASSES.items():
        rows = [row for row, one in enumerate(known) if name in one]
        chosen = [known[row][name] for row in rows]
        readers[name] = train_reader(features_ND[rows], chosen, len(classes))
    return readers


def balanced_accuracy(
    readers: Mapping[str, Reader], features_ND: np.ndarray, known: Sequence[Mapping[str, int]]
) -> dict[str, float]:
    """The mean over classes of how often a reader is right, by name, and the `mean` of all."""
    found = {}
    for name, reader in readers.items():
        rows = [row for row, one in enumerate(known) if name in one]
        truth_N = np.array([known[row][name] for row in rows])
        right_N = reader(features_ND[rows]) == truth_N
        found[name] = float(np.mean([right_N[truth_N == c].mean() for c in np.unique(truth_N)]))
    return {**found, "mean": float(np.mean([*found.values()]))}
