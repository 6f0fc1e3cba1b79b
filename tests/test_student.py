"""One student, whatever runs it: an engine without torch, or the network of a bundle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from predict.material import RED, picture
from spiritseg.errors import BundleError, ConfigError, DataError


def test_an_image_of_any_kind_becomes_a_mask(tmp_path: Path) -> None:
    pixels = picture(0)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    kinds = (pixels, Image.fromarray(pixels), str(tmp_path / "image.png"), tensor, tensor / 255)
    for image in kinds:
        mask = RED(image)
        assert mask.dtype == np.uint8
        assert np.array_equal(mask, pixels[..., 0] > 100)
    both = RED.masks(np.stack([pixels, 255 - pixels]))
    assert np.array_equal(both, np.stack([RED(pixels), RED(255 - pixels)]))


def test_an_overlay_blends_the_colours_of_the_classes() -> None:
    pixels = picture(0)
    mask = np.where(pixels[..., 1] > 90, 1, 0).astype(np.uint8)
    colours = np.array([(70, 70, 70), (128, 64, 128)])[mask]
    assert np.array_equal(RED.colourise(mask), colours)
    assert np.array_equal(RED.colourise(np.full((1, 1), 255, np.uint8)), np.zeros((1, 1, 3)))
    shown = np.asarray(RED.overlay(pixels, 0.25, mask)).astype(float)
    assert np.abs(shown - (0.75 * pixels + 0.25 * colours)).max() < 1
    own = RED.overlay(pixels, 0.25, RED(pixels))
    assert np.array_equal(np.asarray(RED.overlay(pixels, 0.25)), np.asarray(own))


def test_an_export_says_what_it_lacks() -> None:
    assert repr(RED) == "Student(2 classes: background, road; none)"
    for lacking in ("network", "info"):
        with pytest.raises(BundleError, match="Use its run or bundle"):
            getattr(RED, lacking)
    with pytest.raises(BundleError, match="Use its run or bundle"):
        RED.experiment()
    with pytest.raises(ConfigError, match="exported with argmax"):
        RED.logits(picture(0))
    with pytest.raises(DataError, match=r"\(H, W, 3\) uint8"):
        RED(np.zeros((0, 3, 3), np.uint8))


def test_functions_keep_their_names_when_modules_of_the_same_name_are_imported() -> None:
    code = (
        "import spiritseg.predict.inputs, spiritseg.student, spiritseg\n"
        "assert spiritseg.predict.__name__ == 'predict' and callable(spiritseg.predict)\n"
        "assert callable(spiritseg.student)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
