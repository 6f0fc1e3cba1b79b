"""A folder of pictures, a film with sound, and a saved student."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from predict.material import film, picture
from tiny_student import student_folder

__all__ = ["pictures", "student_folder", "video"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six pictures of two sizes, nested, of three file types."""
    folder = tmp_path / "pictures"
    for number, suffix in enumerate(("png", "jpg", "webp", "png", "jpg", "png")):
        path = folder / ("deep/er" if number % 2 else ".") / f"{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number, (48, 64 if number < 4 else 65))).save(path)
    return folder


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Twelve frames at 12 a second with a tone."""
    return film(tmp_path / "drive.mp4", [picture(number // 2) for number in range(12)])
