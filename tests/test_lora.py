"""Low-rank pairs: no change at first, trained alone, folded back into plain weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from dpwg.method.transformer import LORA_LAYERS, WaveletGPT
from dpwg.privacy.lora import LoRALinear, add_lora, merge_lora


@torch.no_grad()
def outputs(model: WaveletGPT, inputs) -> torch.Tensor:
    logits = model(inputs.states_BLD, inputs.mask_BL, inputs.codes)
    return torch.cat([part.flatten() for part in logits])


@pytest.mark.parametrize("trained", [False, True])
def test_pairs_change_nothing_at_first_and_merge_into_plain_weights(
    make_model, make_inputs, trained: bool
) -> None:
    model, inputs = make_model(), make_inputs(3)
    before, names = outputs(model, inputs), list(model.state_dict())
    add_lora(model, 4, LORA_LAYERS)
    assert torch.equal(outputs(model, inputs), before)
    if trained:
        for name, parameter in model.named_parameters():
            if name.endswith("up.weight"):
                nn.init.normal_(parameter, std=0.1)
        assert (outputs(model, inputs) - before).abs().max() > 0.01
    apart = outputs(model, inputs)
    merge_lora(model)
    torch.testing.assert_close(outputs(model, inputs), apart, atol=1e-5 * trained, rtol=0)
    assert list(model.state_dict()) == names
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_merged_pair_keeps_what_it_adds_under_autocast() -> None:
    pair, x_BC = LoRALinear(nn.Linear(5, 4), 2), torch.randn(100, 5)
    nn.init.normal_(pair.up.weight, std=1e-2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        apart = pair(x_BC)
        pair.merged = True
        assert torch.equal(pair(x_BC), apart)


def test_a_reparametrized_base_takes_the_pair_in() -> None:
    model, x_BC = nn.ModuleDict({"it": weight_norm(nn.Linear(5, 4))}), torch.randn(3, 5)
    add_lora(model, 2, ("it",))
    nn.init.normal_(model["it"].up.weight)
    apart = model["it"](x_BC)
    merge_lora(model)
    torch.testing.assert_close(model["it"](x_BC), apart, atol=1e-5, rtol=0)


def test_only_the_pairs_are_trainable_in_their_layer_s_dtype(make_model) -> None:
    model = make_model().bfloat16()
    add_lora(model, 2, ("qkv", "mlp_in"))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    pairs = {name for name, _ in model.named_parameters() if ".down." in name or ".up." in name}
    assert trained == pairs
    # 2 blocks with both, and 3 code heads with an mlp_in of their own
    assert len(trained) == 2 * (2 * 2 + 3)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("names", [("attention",), ("norm",), ("qkv", "kqv"), ()])
def test_names_that_match_no_linear_layer_are_refused(make_model, names) -> None:
    with pytest.raises(ValueError, match="Linear layers named"):
        add_lora(make_model(), 2, names)
