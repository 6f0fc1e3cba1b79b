"""Freed memory stays with the process within the context, and goes back after it."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the C library is not glibc"
)

PAGES = 24_576  # of 4 KiB: 96 MiB, above every threshold of glibc's

# In a process of its own, since what others have allocated decides what glibc does.
SCRIPT = f"""
import json, resource
from contextlib import suppress
from pathlib import Path
import numpy as np
from spiritseg.training.allocator import freed_memory_kept

def faults():
    "Page faults while a large array is made and dropped; some builds of torch do not ask malloc."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones({PAGES} * 1024, np.float32)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

found = {{}}
faults()
found["usual"] = faults()
before = resident()
with freed_memory_kept():
    faults()
    found["kept"] = faults()
    found["held"] = resident() - before
found["after"] = resident() - before
with suppress(KeyError), freed_memory_kept():
    faults()
    raise KeyError
found["after an error"] = resident() - before
faults()
found["usual again"] = resident() - before
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, int]:
    """Page faults of a step, and resident pages more than before."""
    words = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    figures: dict[str, int] = json.loads(done.stdout)
    return figures


def test_a_second_step_gets_the_first_ones_memory(found: dict[str, int]) -> None:
    # By default the system hands it out anew, in pages of 4 KiB or of 2 MiB.
    assert found["usual"] >= PAGES / 512
    assert 4 * found["kept"] < found["usual"]


def test_the_memory_goes_back_at_the_end(found: dict[str, int]) -> None:
    assert found["held"] > PAGES / 2
    assert found["after"] < PAGES / 2


def test_also_after_an_error(found: dict[str, int]) -> None:
    assert found["after an error"] < PAGES / 2
    assert found["usual again"] < PAGES / 2
