"""Small data sets on disk, in the layouts of the real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spiritseg.config import Input

Write = Callable[..., Path]


def _write_image(path: Path, size: tuple[int, int] = (40, 56), seed: int | None = None) -> Path:
    """Write a random picture; without a seed it is a function of its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    key = sum(map(ord, path.as_posix())) * 7919 + len(path.name) if seed is None else seed
    noise = np.random.default_rng([key, *path.name.encode()] if seed is None else key)
    Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


def _write_mask(
    path: Path, values: tuple[int, ...] = (0, 1), size: tuple[int, int] = (40, 56)
) -> Path:
    """Write a mask whose columns go through the values, over and over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    row = np.resize(np.array(values, np.uint8), size[1])
    Image.fromarray(np.tile(row, (size[0], 1))).save(path)
    return path


@pytest.fixture
def write_image() -> Write:
    return _write_image


@pytest.fixture
def write_mask() -> Write:
    return _write_mask


@pytest.fixture
def small() -> Input:
    """An input whose crop fits the small images."""
    return Input(crop=32, cache_mib=4)


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """CamVid with 6 training, 3 validation and 4 test images."""
    root = tmp_path / "camvid"
    for split, count in (("train", 6), ("val", 3), ("test", 4)):
        for i in range(count):
            suffix = ".jpg" if split == "test" else ".png"
            _write_image(root / split / f"seq_{i:03d}{suffix}")
            _write_mask(root / f"{split}annot" / f"seq_{i:03d}.png", (0, 3, 4, 11))
    return root


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    """Cityscapes with 12 training images in two cities and 2 official validation images."""
    root = tmp_path / "cityscapes"
    cities = {"train": {"aachen": 8, "bochum": 4}, "val": {"lindau": 2}}
    for split, counts in cities.items():
        for city, count in counts.items():
            for i in range(count):
                stem = f"{city}_{i:06d}_000019"
                _write_image(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
                fine = root / "gtFine" / split / city
                _write_mask(fine / f"{stem}_gtFine_labelIds.png", (7, 8, 11, 0, 255))
                _write_image(fine / f"{stem}_gtFine_color.png")
                _write_mask(fine / f"{stem}_gtFine_instanceIds.png")
    return root


@pytest.fixture
def ade20k(tmp_path: Path) -> Path:
    """ADE20K with 12 training and 3 validation images."""
    root = tmp_path / "ADEChallengeData2016"
    for split, short, count in (("training", "train", 12), ("validation", "val", 3)):
        for i in range(1, count + 1):
            stem = f"ADE_{short}_{i:08d}"
            _write_image(root / "images" / split / f"{stem}.jpg")
            _write_mask(root / "annotations" / split / f"{stem}.png", (0, 1, 7, 150))
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n")
    (root / "sceneCategories.txt").write_text("ADE_train_00000001 airport_terminal\n")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of 20 images with masks, in two nested folders."""
    root = tmp_path / "folder"
    for i in range(20):
        where = f"day{i // 10}/frame_{i:02d}"
        _write_image(root / "images" / f"{where}.png")
        _write_mask(root / "masks" / f"{where}.png", (0, 1, 255))
    return root
