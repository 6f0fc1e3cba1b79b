"""A stage as a LightningModule: the only training loop there is."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from spiritseg.config import Experiment, Stage
from spiritseg.data.cache import Budget
from spiritseg.errors import ConfigError, DivergedError, RunError
from spiritseg.losses import used_losses
from spiritseg.losses.loss import (
    FEATURES,
    LOGITS,
    Adversary,
    Comparing,
    Context,
    Outputs,
    Statistics,
    Term,
)
from spiritseg.models import Segmenter
from spiritseg.models.ensemble import stage_teacher
from spiritseg.models.segmenter import layer_channels
from spiritseg.models.tracing import recorded, used_parameters
from spiritseg.randomness import derive_seed
from spiritseg.training.adversary import AdversaryTraining
from spiritseg.training.cache import FrozenOutputs, Key
from spiritseg.training.optim import build_optimizer, build_schedule
from spiritseg.training.synced_norms import SyncedNorms

__all__ = ["StageModule", "stage_module"]

Batch = dict[str, Tensor]
Tensors = tuple[Tensor, ...] | list[Tensor]


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
        statistics: mean and standard deviation of the teacher's layers, where a loss
            standardises them.
        seed: the experiment's seed.
        channels_last: memory format of images and weights.
        compile: compile the parts that run.
        sync_norms: Whether batch norms take their statistics over all processes.
        classes: their names in the order of the logits; needed for weights of classes.
    """

    def __init__(
        self,
        name: str,
        stage: Stage,
        network: Segmenter,
        teacher: Segmenter | None = None,
        statistics: Mapping[str, Statistics] | None = None,
        seed: int = 0,
        channels_last: bool = True,
        compile: bool = False,
        classes: Sequence[str] = (),
        sync_norms: bool = False,
    ) -> None:
        super().__init__()
        if stage.trains == "head" and network.head is None:
            raise ConfigError(
                f"stages.{name}.trains: {stage.network} has no head that could be trained apart; "
                "expected all."
            )
        self.name = name
        self.stage = stage
        self.sync_norms = sync_norms
        self.seed = seed
        self.network = network
        # In a tuple, so that it is no submodule: neither trained, saved nor put in train mode.
        self._teacher = (teacher,)
        self.needs: frozenset[str] = frozenset()
        self.teacher_needs: frozenset[str] = frozenset()
        for _, loss, options in used_losses(stage.losses):
            self.needs |= loss.student(options)
            self.teacher_needs |= loss.teacher(options)
        self.terms = self._make_terms(statistics or {}, classes)
        modules = {name: term for name, term in self.terms.items() if isinstance(term, nn.Module)}
        # By place: a user's own loss is named by a path, which has dots.
        self.learnt_terms = nn.ModuleList(modules.values())
        self._adversaries = {
            name: AdversaryTraining(term)
            for name, term in modules.items()
            if isinstance(term, Adversary)
        }
        self._unreached = self._find_unreached()
        self.average = _averaged(self._learnt(), stage.ema_decay) if stage.ema_decay else None
        self.seconds = 0.0
        self.epochs = 0
        self.loss = float("nan")  # the last epoch's
        self._teacher_checked = False
        self._started = time.monotonic()
        self._format = torch.channels_last if channels_last else torch.preserve_format
        budget = Budget(stage.cache_mib if stage.num_views else 0)
        self._kept_features = FrozenOutputs(lambda x: {FEATURES: network.features(x)}, budget)
        self._kept_teacher = FrozenOutputs(self._teach, budget)
        if channels_last:
            network.to(memory_format=torch.channels_last)
        if compile and self.needs <= {FEATURES, LOGITS}:  # a compiled module calls no hooks
            network.extractor.compile()
            if isinstance(network.head, nn.Module):
                network.head.compile()

    @property
    def teacher(self) -> Segmenter | None:
        """The network that is distilled from, if any."""
        return self._teacher[0]

    @property
    def kept_bytes(self) -> int:
        """Bytes of the frozen outputs that are kept so far."""
        return self._kept_features.bytes + self._kept_teacher.bytes

    def frozen_parts(self) -> Iterator[nn.Module]:
        """Yield the parts of the network that this stage must not change."""
        if self.stage.trains == "head":
            yield self.network.extractor
        if self.stage.trains == "extractor" and self.network.head is not None:
            yield self.network.head

    def trained_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that this stage trains, adapters included.

        Those that no loss reaches, behind the layers that are compared, do not count: several
        processes would wait for their gradients.
        """
        frozen = {
            id(p) for part in self.frozen_parts() for p in part.parameters()
        } | self._unreached
        yield from (p for p in self.network.parameters() if id(p) not in frozen)
        yield from self._trained_with_it().parameters()

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
        synced = self.sync_norms and self.trainer.world_size > 1
        with SyncedNorms() if synced else nullcontext():
            outputs = self.outputs(batch)
        size = len(batch["index"])
        self._train_adversaries(outputs)
        total, values = self.total(outputs)
        if not torch.isfinite(total):
            parts = ", ".join(f"{name} {float(value.detach()):g}" for name, value in values.items())
            raise DivergedError(
                f"stage {self.name!r}: the loss is not finite at step {self.global_step} "
                f"({parts}). The checkpoints before it are kept. Lower "
                f"stages.{self.name}.optimizer.lr (now {self.stage.optimizer.lr:g}) or check "
                "the images."
            )
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

    def total(self, outputs: Outputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the weighted sum of the stage's losses, and each of them by name.

        Args:
            outputs: Of a batch.
        """
        values = {name: term(outputs) for name, term in self.terms.items()}
        losses = self.stage.losses
        return torch.stack([losses[name].weight * values[name] for name in values]).sum(), values

    def _train_adversaries(self, outputs: Outputs) -> None:
        seed = derive_seed(self.seed, self.name, "slope", self.global_step, self.global_rank)
        for name, training in self._adversaries.items():
            loss = training.step(outputs, seed)
            self.log(f"loss/{name}/adversary", loss, batch_size=len(outputs.images))

    def outputs(self, batch: Batch) -> Outputs:
        """Compute what the losses need from a batch, and nothing else.

        Args:
            batch: ``image`` (B, 3, h, w), ``plain`` where the teacher sees other colours,
                ``labels`` and ``valid`` (B, H, W), and what the images are a function of:
                ``domain``, ``index`` and ``view`` (B,).

        Returns:
            The outputs of the network and of the teacher that some loss needs.
        """
        images = batch["image"].contiguous(memory_format=self._format)
        plain = batch.get("plain", batch["image"]).contiguous(memory_format=self._format)
        columns = (batch[k].tolist() for k in ("domain", "index", "view"))
        keys: list[Key] = list(zip(*columns, strict=True))
        return Outputs(
            labels=batch["labels"],
            valid=batch["valid"],
            images=images,
            student=self._student_outputs(images, keys),
            teacher=self._teacher_outputs(plain, keys),
        )

    def _student_outputs(self, images: Tensor, keys: list[Key]) -> dict[str, Tensor]:
        if self.stage.trains != "head":
            return self.network.outputs(images, self.needs)
        if self.stage.num_views:
            features = self._kept_features(images, keys)[FEATURES]
        else:
            with torch.no_grad():
                features = self.network.features(images)
        layers = self.needs - {FEATURES, LOGITS}
        with recorded(self.network, layers) as found:
            logits = self.network.classify(features, images.shape[-2:])
        return {**found, FEATURES: features, LOGITS: logits}

    def _teacher_outputs(self, images: Tensor, keys: list[Key]) -> dict[str, Tensor]:
        if not self.teacher_needs:
            return {}
        if self.stage.num_views:
            return self._kept_teacher(images, keys)
        with torch.no_grad():
            return self._teach(images)

    def _teach(self, images: Tensor) -> dict[str, Tensor]:
        assert self.teacher is not None, "a loss that needs a teacher got none"
        found = self.teacher.outputs(images, self.teacher_needs)
        if not self._teacher_checked:
            self._check_teacher(found)
        return found

    def _check_teacher(self, outputs: Mapping[str, Tensor]) -> None:
        """Refuse a teacher that gives NaN or infinity; looked at once a stage.

        Logits of minus infinity are right: a class that cannot be.
        """
        for name, values in outputs.items():
            bad = values.isnan() | (values == torch.inf)
            if name != LOGITS:
                bad |= values == -torch.inf
            if bool(bad.any()):
                raise DivergedError(
                    f"stage {self.name!r}: the {name} of the teacher {self.stage.teacher} are not "
                    "finite, so that nothing can be learnt from them. Check its weights (spiritseg "
                    "doctor) and the range of the images."
                )
        self._teacher_checked = True

    def comparing(self) -> Iterator[tuple[str, Comparing]]:
        """Yield the terms that compare maps, whose explained variance can be measured."""
        for name, term in self.terms.items():
            if isinstance(term, Comparing):
                yield name, term

    def _make_terms(
        self, statistics: Mapping[str, Statistics], classes: Sequence[str]
    ) -> dict[str, Term]:
        context = Context(
            classes=classes,
            channels=self._channels,
            statistics=statistics,
            seed=partial(derive_seed, self.seed, self.name),
        )
        terms: dict[str, Term] = {}
        for name, loss, options in used_losses(self.stage.losses):
            problems = list(loss.problems(options, classes or None))
            if problems:
                raise ConfigError(f"stages.{self.name}.losses.{name}.{problems[0]}")
            terms[name] = loss.make(options, context)
        return terms

    def _channels(
        self, of: Literal["student", "teacher"], layers: Collection[str]
    ) -> Mapping[str, int]:
        network = self.network if of == "student" else self.teacher
        if network is None:
            raise RunError(f"stage {self.name!r}: a loss needs a teacher, got none.")
        return layer_channels(network, layers)

    def _find_unreached(self) -> set[int]:
        """Return the ids of the network's parameters that no loss depends on."""
        if self.needs & {LOGITS}:
            return set()
        side = 2 * self.network.extractor.multiple_of
        like = next(self.network.parameters(), torch.zeros(()))
        images = torch.zeros(1, 3, side, side, device=like.device)
        reached = used_parameters(_Outputs(self.network, self.needs), (images,))
        return {id(p) for p in self.network.parameters()} - reached

    def configure_optimizers(self) -> Any:
        """Make the optimizer over what trains, and its schedule."""
        optimizer = build_optimizer(self.stage.optimizer, self.trained_parameters())
        steps = int(self.trainer.estimated_stepping_batches)
        for training in self._adversaries.values():
            training.start(steps)
        schedule = build_schedule(self.stage.optimizer, optimizer, steps)
        if schedule is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Move the average of the weights towards them."""
        if self.average is not None:
            self.average.update_parameters(self._learnt())

    def settle(self) -> None:
        """Give network and terms the averaged weights, if the stage keeps an average.

        Its decay grows with the steps up to ``stage.ema_decay``, so that the first steps' weights
        are forgotten in a short stage too (`_averaged`).
        """
        if self.average is not None:
            self._learnt().load_state_dict(self.average.module.state_dict())

    def _learnt(self) -> nn.ModuleDict:
        """Return what belongs together: an adapter fits the weights that it was trained with."""
        return nn.ModuleDict({"network": self.network, "terms": self._trained_with_it()})

    def _trained_with_it(self) -> nn.ModuleList:
        """Return the terms whose parameters are trained by the student's optimizer."""
        terms = self.learnt_terms
        return nn.ModuleList(term for term in terms if not isinstance(term, Adversary))

    def on_train_epoch_start(self) -> None:
        """Start the epoch's clock."""
        self._started = time.monotonic()

    def on_train_epoch_end(self) -> None:
        """Add the epoch and its seconds, note its loss; checkpoints are saved after this."""
        self.seconds += time.monotonic() - self._started
        self.epochs += 1
        self.loss = float(self.trainer.callback_metrics["loss_epoch"])

    def on_train_end(self) -> None:
        """Give all processes the batch-norm statistics of the first, which is the one saved."""
        if self.trainer.world_size > 1:
            averaged = self.average.buffers() if self.average is not None else ()
            for buffer in (*self.network.buffers(), *averaged):
                torch.distributed.broadcast(buffer, src=0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what a stage reports, whether it stops, and the adversaries' optimizers.

        From the checkpoint of its last epoch a stage resumes with nothing left to train, and
        Lightning then knows neither a loss nor that early stopping had its say.
        """
        checkpoint["seconds"] = self.seconds
        checkpoint["epochs"] = self.epochs
        checkpoint["loss"] = self.loss
        checkpoint["should_stop"] = self.trainer.should_stop
        checkpoint["adversaries"] = {
            name: training.training_state() for name, training in self._adversaries.items()
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up what was reached before, and start at the beginning of an epoch."""
        self.seconds = checkpoint["seconds"]
        self.epochs = checkpoint["epochs"]
        self.loss = checkpoint["loss"]
        self.trainer.should_stop = checkpoint["should_stop"]
        for name, training in self._adversaries.items():
            training.restore(checkpoint["adversaries"][name])
        # Checkpoints are written between two epochs, while Lightning still counts the batches
        # of the one that ended; left as they are, the next epoch would stop after one batch.
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        batches["current"] = dict.fromkeys(batches["current"], 0)
        batches["is_last_batch"] = False


class _Outputs(nn.Module):
    """Some outputs of a network, as a module."""

    def __init__(self, network: Segmenter, wanted: frozenset[str]) -> None:
        super().__init__()
        self.network, self.wanted = network, wanted

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.network.outputs(images, self.wanted)


def _averaged(learnt: nn.Module, decay: float) -> AveragedModel:
    """Copy a module into the moving average of its weights and batch-norm statistics.

    The first step's weights are taken as they are; after n steps the decay is
    min(decay, (1 + n) / (10 + n)). A constant 0.999 would leave them 74 % of the average after
    300 steps.
    """

    def move(averages: Tensors, values: Tensors, count: Tensor | int) -> None:
        if averages[0].is_floating_point():
            n = int(count)
            torch._foreach_lerp_(averages, values, 1 - min(decay, (1 + n) / (10 + n)))
        else:  # counters: rounded, even frozen ones would move
            torch._foreach_copy_(averages, values)

    average = AveragedModel(learnt, multi_avg_fn=move, use_buffers=True)
    return average.requires_grad_(False)


def stage_module(
    name: str,
    experiment: Experiment,
    networks: dict[str, Segmenter],
    classes: Sequence[str],
    statistics: dict[str, Statistics] | None = None,
) -> StageModule:
    """Make the module that trains a stage of an experiment.

    Args:
        name: of the stage.
        experiment: whose stage it is.
        networks: all networks by name.
        classes: their names in the order of the logits.
        statistics: from `teacher_statistics`.
    """
    stage, trainer = experiment.stages[name], experiment.trainer
    return StageModule(
        name,
        stage,
        networks[stage.network],
        stage_teacher(stage, networks),
        statistics,
        experiment.seed,
        channels_last=trainer.channels_last,
        compile=trainer.compile,
        classes=classes,
        sync_norms=trainer.sync_batchnorm,
    )
