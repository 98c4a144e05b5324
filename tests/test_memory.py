"""A process that trains keeps the memory of freed tensors."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import resource, sys, torch
from dpwg.training.processes import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(12):
    torch.ones(16, 2**20)
before = faults()
for _ in range(8):
    torch.ones(16, 2**20)
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_tensors_are_used_again_without_new_pages():
    faults = {}
    for way in ("plain", "keep"):
        ran = subprocess.run(
            [sys.executable, "-c", CODE, way], capture_output=True, text=True, check=True
        )
        faults[way] = int(ran.stdout)
    assert faults["plain"] > 8 * 64  # whatever the size of a page, up to 1 MB
    assert faults["keep"] < faults["plain"] / 10
