"""WaveletGPT: caches, causality, shapes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dpwg.config import ModelConfig
from dpwg.method.layers import cross_entropy
from dpwg.method.transformer import WaveletGPT

CODES = [(s, p, k) for s in range(3) for p in range(4) for k in range(2)]  # in the order of drawing


def uncached(model: WaveletGPT, inputs) -> list[Tensor]:
    with torch.no_grad():
        return model(inputs.states_BLD, inputs.mask_BL, inputs.codes)


def in_order(logits: list[Tensor]) -> list[Tensor]:
    return [logits[s][:, p, k] for s, p, k in CODES]


@torch.no_grad()
def test_cached_logits_equal_uncached_ones_at_every_position_and_code(make_model, make_inputs):
    model, inputs = make_model(), make_inputs(3)
    whole = uncached(model, inputs)
    assert [tuple(part.shape) for part in whole] == [(3, 4, 2, 5), (3, 4, 2, 7), (3, 4, 2, 9)]
    torch.manual_seed(0)
    latents = [torch.randn_like(z) for z in model.latents(inputs.codes)]  # not drawn yet: garbage
    generation = model.begin(inputs.states_BLD, inputs.mask_BL)
    for (s, p, k), logits_BV in zip(CODES, in_order(whole), strict=True):
        if k == 0:
            generation.advance(latents)
        torch.testing.assert_close(generation.logits(latents, k), logits_BV, atol=1e-4, rtol=0)
        width = model.config.code_widths[s]
        vectors_BD = model.get_buffer(f"codebook_{s}")[inputs.codes[s][:, p, k]]
        latents[s][:, p, k * width : (k + 1) * width] = vectors_BD


def test_a_code_reaches_the_logits_after_it_and_none_before(make_model, make_inputs) -> None:
    model, inputs = make_model(), make_inputs(1)
    every = inputs[torch.zeros(len(CODES), dtype=torch.int64)]
    for row, (s, p, k) in enumerate(CODES):
        every.codes[s][row, p, k] = (every.codes[s][row, p, k] + 1) % model.config.codebook_sizes[s]
    before = in_order(uncached(model, inputs))
    after = in_order(uncached(model, every))
    for row, changed in enumerate(CODES):
        moved = [
            not torch.allclose(a[row], b[0], atol=1e-6, rtol=0)
            for a, b in zip(after, before, strict=True)
        ]
        assert not any(moved[: row + 1]), f"{changed} leaks into an earlier code"
        assert changed == CODES[-1] or any(moved[row + 1 :]), f"{changed} reaches nothing"
        assert changed[2] == 1 or moved[row + 1], f"{changed} does not reach its position's next"


def test_the_caption_matters_and_neither_its_padding_nor_its_batch(make_model, make_inputs) -> None:
    model, inputs = make_model(), make_inputs(4)
    assert not inputs.mask_BL.all()
    noise_BLD = 100 * torch.randn(inputs.states_BLD.shape, generator=torch.manual_seed(0))
    padded, other = (
        dataclasses.replace(inputs, states_BLD=inputs.states_BLD + noise_BLD * mask_BL[..., None])
        for mask_BL in (~inputs.mask_BL, inputs.mask_BL)
    )
    changed = [uncached(model, own) for own in (inputs, padded, other, inputs[slice(2, 3)])]
    for a, b, c, alone in zip(*changed, strict=True):
        assert torch.equal(a, b)
        assert (a - c).abs().amax((1, 2, 3)).min() > 1e-3
        torch.testing.assert_close(a[2:3], alone, atol=1e-5, rtol=0)


def test_the_likelihood_is_the_mean_log_probability_of_the_codes(make_model, make_inputs) -> None:
    model, inputs = make_model(), make_inputs(3)
    likelihoods = [
        logits_BV.log_softmax(1).gather(1, inputs.codes[s][:, p, k, None])
        for (s, p, k), logits_BV in zip(CODES, in_order(uncached(model, inputs)), strict=True)
    ]
    expected_B = -torch.cat(likelihoods, dim=1).mean(1)
    torch.testing.assert_close(inputs.losses(model), expected_B, atol=1e-5, rtol=0)
    # An untrained model spreads its chances evenly.
    config = ModelConfig(codebook_sizes=(64, 64), code_widths=(3, 9), positions=4, codes=2)
    torch.manual_seed(0)
    with torch.no_grad():
        losses_B = make_inputs(2, config=config).losses(WaveletGPT(config))
    torch.testing.assert_close(losses_B, torch.full((2,), 64.0).log(), atol=0.5, rtol=0)


def test_a_model_for_a_tokenizer_copies_its_codebooks(make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    model = WaveletGPT.for_tokenizer(tokenizer, width=16, blocks=1, heads=2, text_width=8)
    config = model.config
    assert (config.positions, config.codes, config.width, config.text_width) == (16, 4, 16, 8)
    for scale, codebook in enumerate(tokenizer.codebooks):
        own = model.get_buffer(f"codebook_{scale}")
        assert torch.equal(own, codebook.vectors_KD)
        codebook.vectors_KD.zero_()
        assert own.any()
    assert not any("codebook" in name for name, _ in model.named_parameters())


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="width=10 to be a multiple of 4"):
        ModelConfig(width=10)
    with pytest.raises(ValueError, match="code_widths"):
        ModelConfig(codebook_sizes=(4, 4))
    with pytest.raises(ValueError, match="'depth'"):
        ModelConfig.from_json({"depth": 3})
    config = ModelConfig(width=64, codebook_sizes=(4, 5, 6))
    assert ModelConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_cross_entropy_and_its_gradient_are_those_of_torch(dtype, error) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = 515
    logits_NV = (5 * torch.randn(rows, 11, generator=generator)).to(dtype).requires_grad_()
    index_N = torch.randint(11, (rows,), generator=generator)
    weights_N = torch.randn(rows, generator=generator)
    expected_N = F.cross_entropy(logits_NV.float(), index_N, reduction="none")
    (expected,) = torch.autograd.grad((weights_N * expected_N).sum(), logits_NV)
    found_N = cross_entropy(logits_NV, index_N)
    (found,) = torch.autograd.grad((weights_N * found_N).sum(), logits_NV)
    torch.testing.assert_close(found_N, expected_N, atol=1e-6, rtol=1e-6)
    assert found.dtype == dtype
    assert (found - expected).float().norm() <= error * expected.float().norm()
