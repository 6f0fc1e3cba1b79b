"""Progress bars that say what is going on in our words, not in Lightning's."""

from __future__ import annotations

from lightning.pytorch.callbacks import RichProgressBar

__all__ = ["MeasuringProgress", "StageProgress"]


class StageProgress(RichProgressBar):
    """Names the stage; most stages are bounded in steps, not in epochs.

    Args:
        stage: its name.
    """

    def __init__(self, stage: str) -> None:
        super().__init__(leave=False)
        self._stage = stage

    def _get_train_description(self, current_epoch: int) -> str:
        return f"{self._stage}, epoch {current_epoch + 1}"


class MeasuringProgress(RichProgressBar):
    """Says how many images are measured.

    Args:
        images: how many.
    """

    def __init__(self, images: int) -> None:
        super().__init__(leave=False)
        self._images = images

    @property
    def test_description(self) -> str:
        """What stands before the bar."""
        return f"measuring {self._images} images"
