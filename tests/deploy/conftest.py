"""A small video of procedural scenes."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from spiritseg.images import Pixels
from tiny_student import exported, fixed, pictures, scenes, student_folder, traced

__all__ = ["exported", "fixed", "pictures", "scenes", "student_folder", "traced"]


@pytest.fixture
def video(scenes: list[Pixels], tmp_path: Path) -> Path:
    """Twelve frames at 12 a second with a tone beside them."""
    path = tmp_path / "drive.mp4"
    _write_video(path, [scenes[number // 2] for number in range(12)])
    return path


@pytest.fixture
def write_video() -> Callable[[Path, list[Pixels]], None]:
    """The function that writes frames at 12 a second with a tone."""
    return _write_video


def _write_video(path: Path, frames: list[Pixels], rate: int = 12) -> None:
    """Write frames and an AAC tone of the same length."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=rate)
        picture.height, picture.width = frames[0].shape[:2]
        picture.pix_fmt = "yuv420p"
        tone = container.add_stream("aac", rate=16000)
        for frame in frames:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(picture.encode())
        count = 16000 * len(frames) // rate
        wave = (np.sin(np.arange(count) / 10) * 0.3).astype(np.float32)
        for start in range(0, count, 1024):
            samples = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], "fltp", "mono")
            samples.sample_rate, samples.pts = 16000, start
            samples.time_base = Fraction(1, 16000)
            container.mux(tone.encode(samples))
        container.mux(tone.encode())
