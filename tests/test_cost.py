"""What is counted of a network is what can be reckoned by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dpwg.measure.cost import Counted, count


def test_products_are_counted_forward_and_back() -> None:
    """Two layers of 8 x 8 on 5 rows: a product is 2 * 5 * 8 * 8 operations."""
    product = 2 * 5 * 8 * 8

    def freeze_the_first(model: nn.Sequential) -> None:
        model[0].requires_grad_(False)

    network = Counted(
        name="two layers",
        make=lambda: nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)),
        run=lambda model: model(torch.empty(5, 8, dtype=torch.bfloat16)).sum(),
        train=freeze_the_first,
        passes=3,
        drawing=lambda forward: 3 * forward,
    )
    found = count(network)
    assert (found.parameters, found.trained) == (128, 64)
    # forward twice, then the gradient of the second weight: the first takes none
    assert found.flops == 3 * product
    assert found.drawing_flops == 3 * 2 * product
    assert found.kept_bytes == 5 * 8 * 2  # what enters the second layer, in bfloat16
    assert found.passes == 3


@pytest.mark.slow
def test_published_sizes_have_their_published_parameters() -> None:
    from dpwg.measure.cost import networks

    found = {network.name: count(network).parameters for network in networks()}
    assert found["DP-Wavelet, 350 M, 256 codes a scale"] == pytest.approx(350e6, rel=0.03)
    assert found["DP-LlamaGen, 775 M"] == pytest.approx(775e6, rel=0.03)
    assert found["Stable Diffusion 1.5 at 256 pixels"] == pytest.approx(860e6, rel=0.01)
