"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

_SHARED = Path(os.environ.get("SPIRITSEG_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def _shared(name: str) -> Path:
    folder = _SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not there: set SPIRITSEG_SHARED to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real images: camvid/ and kitti/."""
    return _shared("data")


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    """The real weights: vgg16_hed_bsds500.safetensors."""
    return _shared("weights")


@pytest.fixture(autouse=True)
def _same_start() -> None:
    torch.manual_seed(0)
