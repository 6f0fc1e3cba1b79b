"""A student without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spiritseg.export.engines import Runtime
from spiritseg.export.metadata import ModelCard

COLOURS = ((70, 70, 70), (128, 64, 128))


class Threshold(Runtime):
    """Calls a pixel road where its red is above a level."""

    def __init__(self, level: int) -> None:
        card = ModelCard(
            name="threshold",
            classes=("background", "road"),
            colours=((70, 70, 70), (128, 64, 128)),
            pool=1,
            preprocess=True,
            output="mask",
            precision="fp32",
            size=(48, 64),
            dynamic=True,
            params=1,
            gflops=0.0,
            student_sha256="",
            version="",
        )
        super().__init__(card, "none", Path("threshold"))
        self.level = level

    def forward(self, images: NDArray[Any]) -> NDArray[Any]:
        red = images[..., 0] if images.dtype == np.uint8 else images[:, 0] * 255
        return (red > self.level).astype(np.uint8)
