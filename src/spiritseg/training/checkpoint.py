"""Checkpoints of a stage: whole or not there, checked when read, two of them kept."""

from __future__ import annotations

import hashlib
import io
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from spiritseg.files import write_atomically
from spiritseg.stopping import Terminated, stop_requested, take_signal

__all__ = ["AtomicCheckpointIO", "EpochCheckpoint", "latest"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, written atomically; a digest in the name proves them whole."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write ``STEM-DIGEST.ckpt`` for ``STEM.ckpt`` and drop all but the newest two.

        Args:
            checkpoint: what Lightning wants kept.
            path: ``step-NNNNNNNN.ckpt`` in the stage's folder; another name is kept as it is.
            storage_options: not used.
        """
        if not Path(path).name.startswith("step-"):  # Lightning's own, which it finds by name
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        data = buffer.getvalue()
        stem = Path(path)
        digest = hashlib.sha256(data).hexdigest()[:16]
        write_atomically(stem.with_name(f"{stem.stem}-{digest}.ckpt"), data)
        for old in [path for path in _newest_first(stem.parent) if path.is_file()][2:]:
            old.unlink(missing_ok=True)


class EpochCheckpoint(Checkpoint):
    """Saves at the end of an epoch, when the last save is long enough ago, or SIGTERM came.

    Args:
        folder: where the checkpoints go.
        every_s: least seconds between two of them. When they are written never changes
            what a resumed run ends with.
    """

    def __init__(self, folder: Path, every_s: float) -> None:
        super().__init__()
        self.folder = folder
        self.every_s = every_s
        self._last = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take SIGTERM from Lightning, which would stop within the epoch; it gives it back."""
        take_signal()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save, if it is time; all processes of a distributed run decide alike.

        Raises:
            Terminated: SIGTERM came during the epoch.
        """
        stop = trainer.world_size == 1 and stop_requested()
        due: bool = trainer.strategy.broadcast(time.monotonic() - self._last >= self.every_s)
        if due or stop:
            trainer.save_checkpoint(self.folder / f"step-{trainer.global_step:08d}.ckpt")
            self._last = time.monotonic()
        if stop:
            raise Terminated


def latest(folder: Path) -> Path | None:
    """Find the newest checkpoint that is whole.

    Args:
        folder: a stage's folder.

    Returns:
        Its path, or None where there is none. One whose contents do not match the digest
        in its name (a truncated one, say) is passed over for the one before.
    """
    for path in _newest_first(folder):
        if path.is_file():  # whatever else bears such a name
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
            if path.stem.endswith(digest):
                return path
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*-*.ckpt"), key=lambda path: path.stem[:13], reverse=True)
