"""A critic for the upsampler: it learns to tell public photographs from upsampled ones.

What fits the pixels best on average is soft: of all the hair that a coarse image allows, it draws
the mean. A critic that looks at patches (Isola et al. 2017, arXiv 1611.07004), with normalised
spectra (Miyato et al. 2018, arXiv 1802.05957), pulls it towards pictures that could be photographs.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from dpwg.device import fast_autocast
from dpwg.training.processes import Ranks

WIDTH = 48
LEARNING_RATE = 4e-4


class Critic:
    """The network, in float32, and its own optimizer; the same in every process."""

    def __init__(self, ranks: Ranks, *, weight: float, matching: float, seed: int) -> None:
        self._ranks, self._weight, self._matching = ranks, weight, matching
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._layers = nn.ModuleList(
                (
                    nn.Conv2d(6, WIDTH, 4, 2, 1),
                    spectral_norm(nn.Conv2d(WIDTH, 2 * WIDTH, 4, 2, 1)),
                    spectral_norm(nn.Conv2d(2 * WIDTH, 4 * WIDTH, 4, 2, 1)),
                    spectral_norm(nn.Conv2d(4 * WIDTH, 4 * WIDTH, 3, 1, 1)),
                    nn.Conv2d(4 * WIDTH, 1, 3, 1, 1),
                )
            ).to(ranks.device)
        self._adam = torch.optim.Adam(self._layers.parameters(), LEARNING_RATE, betas=(0.5, 0.99))

    @classmethod
    def asked_for(cls, ranks: Ranks, settings: Any) -> Self | None:
        """By the settings `critic` and `matching`, its two weights; none where both are 0."""
        if not (settings.critic or settings.matching):
            return None
        return cls(ranks, weight=settings.critic, matching=settings.matching, seed=settings.seed)

    def loss(self, drawn_BCHW: Tensor, target_BCHW: Tensor, coarse_BChw: Tensor) -> Tensor:
        """Take a step of the critic's own; then what the upsampler adds to its mean error.

        That is how little the critic is taken in, and how far its layers see drawn and true images
        apart (feature matching: Salimans et al. 2016, arXiv 1606.03498).
        """
        with fast_autocast(self._ranks.device):
            true, false = (
                self._see(image_BCHW, coarse_BChw)
                for image_BCHW in (target_BCHW, drawn_BCHW.detach())
            )
        hinge = F.relu(1 - true[-1].float()).mean() + F.relu(1 + false[-1].float()).mean()
        self._step(hinge / self._ranks.world)
        self._layers.requires_grad_(False)
        with fast_autocast(self._ranks.device):
            drawn = self._see(drawn_BCHW, coarse_BChw)
        self._layers.requires_grad_(True)
        apart = drawn[-1].new_zeros((), dtype=torch.float32)
        for one, other in zip(drawn[:-1], true[:-1], strict=True):
            apart = apart + (one.float() - other.detach().float()).abs().mean()
        return self._matching * apart - self._weight * drawn[-1].float().mean()

    def _see(self, image_BCHW: Tensor, coarse_BChw: Tensor) -> list[Tensor]:
        """What each layer makes of images beside the coarse ones they were drawn from."""
        size = image_BCHW.shape[-2:]
        seen = [torch.cat((image_BCHW, F.interpolate(coarse_BChw, size=size)), 1) * 2 - 1]
        for layer in self._layers:
            x = layer(seen[-1])
            seen.append(x if layer is self._layers[-1] else F.leaky_relu(x, 0.2))
        return seen[1:]

    def _step(self, loss: Tensor) -> None:
        self._adam.zero_grad()
        loss.backward()
        self._ranks.sum_(p.grad for p in self._layers.parameters() if p.grad is not None)
        self._adam.step()

    def state(self) -> dict[str, Tensor]:
        """Everything that `load` needs to go on."""
        tensors = {f"critic/{name}": x for name, x in self._layers.state_dict().items()}
        for place, values in self._adam.state_dict()["state"].items():
            tensors |= {f"critic.adam/{place}/{name}": x for name, x in values.items()}
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from a state."""
        prefix, moments = "critic/", "critic.adam/"
        own = {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}
        self._layers.load_state_dict(own)
        values: dict[int, dict[str, Tensor]] = {}
        for name in tensors:
            if name.startswith(moments):
                _, place, key = name.split("/")
                values.setdefault(int(place), {})[key] = tensors[name]
        if values:  # none before its first step
            self._adam.load_state_dict({**self._adam.state_dict(), "state": values})
