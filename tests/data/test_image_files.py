from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from spiritseg.config import Input, Proximity, Target
from spiritseg.data.domains import open_proximity, open_target_all
from spiritseg.errors import BadImageError, DataError
from spiritseg.images import IMAGE_SUFFIXES, image_size, read_image, read_mask, to_rgb
from spiritseg.predict.inputs import find_items

Write = Callable[..., Path]


def test_rgb_is_read_exactly(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels)


@pytest.mark.parametrize(
    ("mode", "value", "want"),
    [
        ("L", 90, (90, 90, 90)),
        ("1", 1, (255, 255, 255)),
        ("LA", (90, 10), (90, 90, 90)),
        ("RGBA", (10, 20, 30, 0), (10, 20, 30)),
        ("I;16", 0x8040, (128, 128, 128)),
    ],
)
def test_other_modes_become_rgb(tmp_path: Path, mode: str, value: object, want: object) -> None:
    Image.new(mode, (4, 3), value).save(tmp_path / "a.png")  # type: ignore[arg-type]
    image = read_image(tmp_path / "a.png")
    assert image.shape == (3, 3, 4)
    assert tuple(image[:, 1, 2].tolist()) == want


def test_32_bits_and_floating_point() -> None:
    assert to_rgb(Image.new("I", (1, 1), 0x8040)).getpixel((0, 0)) == (128, 128, 128)
    with pytest.raises(ValueError, match="floating-point"):
        to_rgb(Image.new("F", (1, 1), 0.5))


def test_palette_with_transparency_and_cmyk_become_rgb(tmp_path: Path) -> None:
    picture = Image.new("P", (4, 3), 1)
    picture.putpalette([0, 0, 0, 9, 8, 7])
    picture.save(tmp_path / "a.png", transparency=bytes([0, 128]))
    assert tuple(read_image(tmp_path / "a.png")[:, 0, 0].tolist()) == (9, 8, 7)
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "b.jpg", quality=100)
    red, green, blue = read_image(tmp_path / "b.jpg")[:, 8, 8].tolist()
    assert red > 250
    assert max(green, blue) < 5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path, exif=exif)
    with Image.open(path) as stored:
        want = np.array(ImageOps.exif_transpose(stored))
    assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), want)
    assert image_size(path) == want.shape[:2] == ((5, 7) if orientation < 5 else (7, 5))


def test_masks_give_indices_in_every_mode(tmp_path: Path) -> None:
    values = np.array([[0, 1, 2], [3, 4, 255]], np.uint8)
    grey = Image.fromarray(values)
    palette = grey.copy().convert("L")
    palette.putpalette([v for i in range(256) for v in (255 - i, i, 7)])
    for name, picture in {
        "grey": grey,
        "palette": palette,
        "rgb": Image.merge("RGB", [grey] * 3),
        "deep": Image.fromarray(values.astype(np.uint16)),
    }.items():
        path = tmp_path / f"{name}.png"
        picture.save(path)
        assert read_mask(path).tolist() == values.tolist(), name
    Image.fromarray(values > 1).save(tmp_path / "bits.png")
    assert read_mask(tmp_path / "bits.png").tolist() == [[0, 0, 1], [1, 1, 1]]


def test_coloured_masks_are_refused(tmp_path: Path, write_image: Write) -> None:
    with pytest.raises(DataError, match=r"a\.png is a coloured picture; expected one channel"):
        read_mask(write_image(tmp_path / "a.png"))


def test_unreadable_files_are_named(tmp_path: Path, write_image: Write) -> None:
    whole = write_image(tmp_path / "whole.jpg").read_bytes()
    broken = write_image(tmp_path / "whole.png").read_bytes()
    cases = {
        "empty.png": (b"", "empty"),
        "cut.jpg": (whole[: len(whole) // 2], "truncated"),
        "cut.png": (broken[: len(broken) // 2], ""),
        "text.png": (b"not an image at all", "not an image file"),
    }
    for name, (content, reason) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadImageError) as caught:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert reason in caught.value.reason
        assert "--skip-bad" in str(caught.value)
    with pytest.raises(BadImageError, match="no such file"):
        read_mask(tmp_path / "none.png")


def test_decompression_bombs_are_refused(
    tmp_path: Path, write_image: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_image(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadImageError, match="decompression bomb"):
        read_image(path)
    with pytest.raises(BadImageError, match="decompression bomb"):
        image_size(path)


def test_every_suffix_is_found_and_decoded_wherever_images_are_given(
    tmp_path: Path, write_image: Write, write_mask: Write
) -> None:
    """One list: what training finds, `predict` finds too, 16-bit TIFF among it."""
    root = tmp_path / "near"
    for suffix in IMAGE_SUFFIXES:
        write_image(root / f"images/{suffix[1:]}{suffix}")
        write_mask(root / f"masks/{suffix[1:]}.tif")
    deep = np.full((40, 56), 0x8040, np.uint16)
    Image.fromarray(deep).save(root / "images/tiff.tiff")
    train, held_out = open_proximity(Proximity(root=str(root / "images")), Input(crop=32))
    assert len(train) + len(held_out) == len(IMAGE_SUFFIXES) == len(find_items([root / "images"]))
    assert bool((read_image(root / "images/tiff.tiff") == 0x80).all())
    assert image_size(root / "images/tiff.tiff") == (40, 56)
    target = Target(root=str(root), subset="all")
    assert len(open_target_all(target, Input(crop=32)).train) == len(IMAGE_SUFFIXES) - 2
