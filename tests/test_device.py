"""Where to compute, and in which precision."""

from __future__ import annotations

import pytest
import torch

from dpwg.device import fast_autocast, multiplies_bfloat16, pick_device, pick_precision

CPU = torch.device("cpu")
WITHOUT = {"avx2": True, "avx512_bf16": False, "amx_bf16": False, "cpu_name": "old"}
processors = pytest.mark.parametrize(
    ("features", "there"),
    [
        (WITHOUT, False),
        (WITHOUT | {"amx_bf16": True}, True),
        (WITHOUT | {"avx512_bf16": True}, True),
        ({"architecture": "aarch64", "neon": True, "bf16": True}, True),
        ({}, False),
    ],
)


def test_each_process_of_torchrun_gets_its_own_gpu(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert (pick_device(), pick_device("cpu")) == ("cuda", "cpu")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (pick_device(), pick_device("cpu")) == ("cuda:1", "cpu")


def test_apples_gpu_is_known_and_taken_unasked_where_float32_is_enough(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for there in (False, True):
        monkeypatch.setattr("torch.backends.mps.is_available", lambda there=there: there)
        assert (pick_device(), pick_device(mps=True)) == ("cpu", "mps" if there else "cpu")
    assert pick_device("mps") == "mps"
    with pytest.raises(ValueError, match="device='cuda'"):
        pick_device("cuda")


@processors
def test_bfloat16_is_taken_where_the_processor_multiplies_it(monkeypatch, features, there) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: features)
    assert multiplies_bfloat16(CPU) is there
    assert pick_precision(CPU) == ("bfloat16" if there else "float32")
    assert (pick_precision(CPU, "bfloat16"), pick_precision(CPU, "float32")) == (
        "bfloat16",
        "float32",
    )
    with fast_autocast(CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if there else torch.float32)


def test_a_gpu_is_asked_for_what_it_has_itself(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(
        "torch.cuda.is_bf16_supported", lambda **how: bool(asked.append(how)) or True
    )
    assert pick_precision(torch.device("cuda", 0)) == "bfloat16"
    assert asked == [{"including_emulation": False}]


def test_an_unknown_precision_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="precision='float16' in \\('auto', 'bfloat16', 'float32'"):
        pick_precision(CPU, "float16")
