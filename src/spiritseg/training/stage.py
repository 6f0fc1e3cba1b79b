"""A stage as a LightningModule: the only training loop there is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from spiritseg.config import Stage
from spiritseg.errors import DivergedError
from spiritseg.models import Segmenter
from spiritseg.randomness import derive_seed
from spiritseg.training.cache import FrozenOutputs, Key
from spiritseg.training.optim import build_optimizer, build_schedule
from spiritseg.training.terms import Outputs, Statistics, Term, terms

__all__ = ["StageModule"]

Batch = dict[str, Tensor]


class StageModule(L.LightningModule):
    """Trains one network, or a part of it, under the losses of a stage.

    What a loss does not need is not computed: mimicry never runs a head, a supervised
    stage never runs a teacher. What does not train is frozen: its weights, its
    batch-norm statistics and buffers stay as they are, in eval mode after every
    ``.train()``. The teacher is in eval mode, outside autograd and outside the state
    that is saved.

    Args:
        name: the stage's name; it enters every random draw.
        stage: what trains, under which losses, how.
        network: the network that trains.
        teacher: the network that is distilled from, if any.
        statistics: mean and standard deviation of the teacher's features, where a loss
            standardises them.
        seed: the experiment's seed.
        channels_last: memory format of images and weights.
        compile: compile the parts that run.
    """

    def __init__(
        self,
        name: str,
        stage: Stage,
        network: Segmenter,
        teacher: Segmenter | None = None,
        statistics: Statistics | None = None,
        seed: int = 0,
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.stage = stage
        self.seed = seed
        self.network = network
        self.terms: dict[str, Term] = terms(stage.losses, statistics)
        self.needs = frozenset().union(*(term.needs for term in self.terms.values()))
        self.seconds = 0.0
        self._started = time.monotonic()
        # In a tuple, so that it is no submodule: neither trained, saved nor put in train mode.
        self._teacher = (teacher,)
        self._format = torch.channels_last if channels_last else torch.preserve_format
        budget = stage.cache_mib if stage.views else 0
        self._frozen_features = FrozenOutputs(network.extractor, budget)
        if teacher is not None:
            self._teacher_features = FrozenOutputs(teacher.extractor, budget)
            self._teacher_logits = FrozenOutputs(teacher, budget)
        if channels_last:
            network.to(memory_format=torch.channels_last)
        if compile:
            network.extractor.compile()
            if isinstance(network.head, nn.Module):
                network.head.compile()

    @property
    def teacher(self) -> Segmenter | None:
        """The network that is distilled from, if any."""
        return self._teacher[0]

    def frozen_parts(self) -> Iterator[nn.Module]:
        """Yield the parts of the network that this stage must not change."""
        if self.stage.trains == "head":
            yield self.network.extractor
        if self.stage.trains == "extractor" and self.network.head is not None:
            yield self.network.head

    def trained_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that this stage trains."""
        frozen = {id(p) for part in self.frozen_parts() for p in part.parameters()}
        yield from (p for p in self.network.parameters() if id(p) not in frozen)

    def train(self, mode: bool = True) -> StageModule:
        """Set the mode; frozen parts stay in eval mode."""
        super().train(mode)
        for part in self.frozen_parts():
            part.eval()
        return self

    def setup(self, stage: str) -> None:
        """Thaw what trains, freeze the rest, and put the teacher beside the network."""
        self.network.requires_grad_(False)
        for parameter in self.trained_parameters():
            parameter.requires_grad_(True)
        if self.teacher is not None:
            self.teacher.requires_grad_(False).eval()

    def on_fit_start(self) -> None:
        """Put the network into train mode, and the teacher on its device."""
        self.train()  # Lightning keeps whatever mode an evaluation before left
        if self.teacher is not None:
            self.teacher.to(self.device)
            if self._format is torch.channels_last:
                self.teacher.to(memory_format=torch.channels_last)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Make dropout a function of (seed, stage, step), on every process its own."""
        torch.manual_seed(
            derive_seed(self.seed, self.name, "step", self.global_step, self.global_rank)
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the weighted sum of the stage's losses on a batch."""
        outputs = self.outputs(batch)
        values = {name: term.compute(outputs) for name, term in self.terms.items()}
        total = torch.stack([self.terms[name].weight * v for name, v in values.items()]).sum()
        if not torch.isfinite(total):
            parts = ", ".join(f"{name} {float(value.detach()):g}" for name, value in values.items())
            raise DivergedError(
                f"stage {self.name!r}: the loss is not finite at step {self.global_step} "
                f"({parts}). The checkpoints before it are kept. Lower "
                f"stages.{self.name}.optimizer.lr (now {self.stage.optimizer.lr:g}) or check "
                "the images."
            )
        size = len(batch["index"])
        self.log(
            "loss",
            total,
            on_step=True,
            on_epoch=True,
            prog_bar=True,
            batch_size=size,
            sync_dist=self.trainer.world_size > 1,
        )
        if len(values) > 1:
            self.log_dict({f"loss/{k}": v for k, v in values.items()}, batch_size=size)
        return total

    def outputs(self, batch: Batch) -> Outputs:
        """Compute what the losses need from a batch, and nothing else.

        Args:
            batch: ``image`` (B, 3, h, w), ``labels`` and ``valid`` (B, H, W), and what the
                images are a function of: ``domain``, ``index`` and ``view`` (B,).

        Returns:
            The outputs of the network and of the teacher; None for what no loss needs.
        """
        images = batch["image"].contiguous(memory_format=self._format)
        columns = (batch[k].tolist() for k in ("domain", "index", "view"))
        keys: list[Key] = list(zip(*columns, strict=True))
        found: dict[str, Tensor] = {}
        if self.needs & {"features", "logits"}:
            frozen = self.stage.trains == "head"
            extract = self.network.extractor
            features = self._frozen_features(images, keys) if frozen else extract(images)
            found["features"] = features
            if "logits" in self.needs:
                found["logits"] = self.network.classify(features, images.shape[-2:])
        if "teacher_features" in self.needs:
            found["teacher_features"] = self._teacher_features(images, keys)
        if "teacher_logits" in self.needs:
            found["teacher_logits"] = self._teacher_logits(images, keys)
        return Outputs(labels=batch["labels"], valid=batch["valid"], **found)

    def configure_optimizers(self) -> Any:
        """Make the optimizer over what trains, and its schedule."""
        optimizer = build_optimizer(self.stage.optimizer, self.trained_parameters())
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = build_schedule(self.stage.optimizer, optimizer, steps)
        if schedule is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_train_epoch_start(self) -> None:
        """Start the epoch's clock."""
        self._started = time.monotonic()

    def on_train_epoch_end(self) -> None:
        """Add the epoch's seconds; checkpoints are saved after this."""
        self.seconds += time.monotonic() - self._started

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the seconds spent so far."""
        checkpoint["seconds"] = self.seconds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the seconds spent before, and start at the beginning of an epoch."""
        self.seconds = checkpoint["seconds"]
        # Checkpoints are written between two epochs, while Lightning still counts the batches
        # of the one that ended; left as they are, the next epoch would stop after one batch.
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        batches["current"] = dict.fromkeys(batches["current"], 0)
        batches["is_last_batch"] = False
