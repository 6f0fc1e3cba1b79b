"""A folder of pictures, a film with sound, and a saved student."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from predict.material import film, picture
from spiritseg.config import Extractor, Head, Network
from spiritseg.models.bundle import BundleInfo, save_bundle
from spiritseg.models.factory import build_networks

_NETWORKS = {
    "student": Network(
        Extractor("separable", args={"widths": [8, 8, 8, 8], "depths": [0, 0, 0]}),
        Head("student", channels=8),
    )
}


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


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny student with random weights."""
    folder = tmp_path_factory.mktemp("run") / "student"
    colours = ((70, 70, 70), (128, 64, 128))
    info = BundleInfo(_NETWORKS, "student", ("background", "road"), colours, pool=2)
    save_bundle(folder, build_networks(_NETWORKS, 2, seed=1)["student"].eval(), info)
    return folder
