"""Where to compute, and in which precision."""

from __future__ import annotations

import pytest
import torch

from dpwg.device import fast_autocast, multiplies_bfloat16, pick_device, pick_precision

CPU = torch.device("cpu")
OLD = {"avx2": True, "avx512_bf16": False, "amx_bf16": False, "cpu_name": "old"}


def test_a_gpu_is_taken_where_it_is_and_each_process_gets_its_own(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert (pick_device(), pick_device("cpu")) == ("cuda", "cpu")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (pick_device(), pick_device("cpu")) == ("cuda:1", "cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for there in (False, True):  # Apple's has no float64
        monkeypatch.setattr("torch.backends.mps.is_available", lambda there=there: there)
        assert (pick_device(), pick_device(mps=True)) == ("cpu", "mps" if there else "cpu")
    assert pick_device("mps") == "mps"


@pytest.mark.parametrize(
    ("features", "there"),
    [
        (OLD, False),
        (OLD | {"amx_bf16": True}, True),
        (OLD | {"avx512_bf16": True}, True),
        ({"architecture": "aarch64", "neon": True, "bf16": True}, True),
        ({}, False),
    ],
)
def test_bfloat16_is_taken_where_the_processor_multiplies_it(monkeypatch, features, there) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: features)
    assert multiplies_bfloat16(CPU) is there
    assert pick_precision(CPU) == ("bfloat16" if there else "float32")
    assert [pick_precision(CPU, name) for name in ("bfloat16", "float32")] == [
        "bfloat16",
        "float32",
    ]
    with fast_autocast(CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if there else torch.float32)


def test_a_gpu_is_asked_for_what_it_has_itself(monkeypatch) -> None:
    monkeypatch.setattr(
        "torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    assert pick_precision(torch.device("cuda", 0)) == "float32"


def test_what_is_not_here_is_refused(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="device='cuda'"):
        pick_device("cuda")
    with pytest.raises(ValueError, match="precision='float16'"):
        pick_precision(CPU, "float16")
