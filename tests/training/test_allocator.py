"""Freed memory stays with the process within the context, and goes back after it."""

from __future__ import annotations

import platform
import resource
from pathlib import Path

import pytest
import torch

from spiritseg.training.allocator import freed_memory_kept

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the C library is not glibc"
)

PAGE = resource.getpagesize()
BYTES = 96 * 2**20  # above every threshold of glibc's


def _faults_of_a_step() -> int:
    """Page faults while a large tensor is made and dropped."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(BYTES // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def test_a_second_step_gets_the_first_ones_memory() -> None:
    pages = BYTES // PAGE
    _faults_of_a_step()
    assert _faults_of_a_step() > pages / 1024  # by default the system hands it out anew
    with freed_memory_kept():
        _faults_of_a_step()
        assert _faults_of_a_step() < pages / 1024


def test_the_memory_goes_back_at_the_end() -> None:
    before = _resident()
    with freed_memory_kept():
        _faults_of_a_step()
        assert _resident() > before + BYTES / 2
    assert _resident() < before + BYTES / 2


@freed_memory_kept()
def _step_that_fails() -> None:
    _faults_of_a_step()
    raise RuntimeError("in the middle")


def test_also_after_an_error() -> None:
    before = _resident()
    with pytest.raises(RuntimeError, match="in the middle"):
        _step_that_fails()
    assert _resident() < before + BYTES / 2
    _faults_of_a_step()
    assert _resident() < before + BYTES / 2
