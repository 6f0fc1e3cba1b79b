"""A stage's module, trained for a few steps by Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from spiritseg.training.stage import StageModule
from spiritseg.training.trainer import quiet


def fit(
    module: StageModule,
    batches: list[dict[str, Tensor]],
    ckpt_path: Path | None = None,
    **given: Any,
) -> Trainer:
    """Fit on batches, over and over, and return the trainer."""
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **given,
    )
    loader: Any = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    with quiet():
        trainer.fit(module, loader, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return trainer
