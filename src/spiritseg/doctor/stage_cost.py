"""A few real training steps of a stage: seconds and memory, for its whole length."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from spiritseg.config import Stage, Trainer
from spiritseg.data.domains import Domains
from spiritseg.data.sampling import Key, StageBatches, StageData
from spiritseg.doctor.known import Known
from spiritseg.doctor.system_memory import peak_bytes, reset_peak
from spiritseg.training.measure import (
    HELD_OUT_IMAGES,
    STATISTICS_IMAGES,
    stage_figures,
    teacher_statistics,
)
from spiritseg.training.stage import StageModule, stage_module
from spiritseg.training.trainer import interruptible, lightning_trainer, quiet

__all__ = ["MIB", "StageCost", "extrapolated", "few", "measure_stage"]

MIB = 2**20
_BATCHES = 3
_BUDGET_S = 4.0  # of drawing batches, and of steps; what is slower gets one batch
_SLOW_S = 1.0  # an image

T = TypeVar("T")
Batch = dict[str, Tensor]
_Drawn = tuple[list[Batch], float, float]  # seconds to draw one, and to load it again


@dataclass(frozen=True)
class StageCost:
    """What a few steps of a stage showed; a new step is one on views that were not seen before.

    Args:
        steps: steps of the whole stage, run to its bound.
        batch_size: images a step.
        different: different views that the whole stage shows.
        repeats: whether views come again, so that they and outputs of frozen parts are kept.
        cache: bytes that the stage may use to keep frozen outputs.
        kept: bytes of the kept frozen outputs of one view.
        draw_s: seconds to draw a batch of decoded images.
        load_s: seconds to load it again, from the kept views if there are any.
        fresh_s: seconds of a new step.
        again_s: seconds of a step whose frozen outputs are kept.
        around_s: seconds of the statistics before, and the figures after the whole stage.
        host: peak bytes of this process, and what the cache will take in the course.
        gpu: peak bytes on the GPU; 0 without one.
    """

    steps: int
    batch_size: int
    different: int
    repeats: bool
    cache: int
    kept: int
    draw_s: float
    load_s: float
    fresh_s: float
    again_s: float
    around_s: float = 0.0
    host: int = 0
    gpu: int = 0

    @property
    def kept_share(self) -> float:
        """The share of the different views whose frozen outputs fit the cache."""
        wanted = self.different * self.kept
        return min(1.0, self.cache / wanted) if wanted and self.repeats else 0.0

    @property
    def computed(self) -> int:
        """How many images have their frozen outputs computed in the whole stage."""
        shown = self.steps * self.batch_size
        if not self.repeats or not self.different:
            return shown
        kept = round(self.different * self.kept_share)
        # What is kept is computed once; what does not fit, each time that it comes.
        return kept + round((shown - kept) * (1 - kept / self.different))

    def training_s(self, workers: int = 0) -> float:
        """Return the seconds of all steps, with images from this many loader processes."""
        drawn = self.different / self.batch_size if self.repeats else self.steps
        fresh = self.computed / self.batch_size

        def wait(load_s: float) -> float:
            return load_s if not workers else max(0.0, load_s / workers - self.again_s)

        loading = drawn * wait(self.draw_s) + (self.steps - drawn) * wait(self.load_s)
        return loading + fresh * self.fresh_s + (self.steps - fresh) * self.again_s


def measure_stage(name: str, known: Known, device: torch.device) -> StageCost:
    """Train a stage for a few steps, as in a run but without its folder.

    Args:
        name: name of the stage.
        known: with the opened images and all networks; the stage's network is changed.
        device: where to train.

    Raises:
        SpiritsegError: what would stop the run as well.
    """
    assert known.domains is not None, "the images are opened"
    domains, networks, stage = known.domains, known.networks, known.experiment.stages[name]
    dry = known.dry
    reset_peak(device)

    def data(images: Domains, stage: Stage = stage) -> StageData:
        return StageData(images.train(stage), stage, dry, name, images.styles(stage))

    whole = data(domains)
    counts = [min(STATISTICS_IMAGES, count) for count in whole.counts if count]
    found, before_s = extrapolated(
        lambda n: teacher_statistics(stage, networks, data(few(domains, n)), device),
        lambda _: sum(counts) // len(counts),
    )
    module = stage_module(name, dry, networks, domains.classes.names, found)
    decode = data(domains, replace(stage, views=0)) if known.images_fit else None
    batches, draw_s, load_s = _draw(whole, stage.batch_size, decode)
    fresh_s, again_s = _train(module, batches, dry.trainer)
    held_out = min(HELD_OUT_IMAGES, max(map(len, domains.held_out().values())))
    _, after_s = extrapolated(
        lambda n: stage_figures(module, dry, few(domains, n), device),
        lambda figures: len(domains.target.val) if "val" in figures else held_out,
    )
    kept = module.kept_bytes // sum(len(batch["index"]) for batch in batches)
    steps = _steps(stage, len(whole))
    different = steps * stage.batch_size
    if stage.views:
        different = min(different, stage.views * sum(whole.counts))
    return StageCost(
        steps=steps,
        batch_size=stage.batch_size,
        different=different,
        repeats=stage.views > 0,
        cache=stage.cache_mib * MIB,
        kept=kept,
        draw_s=draw_s,
        load_s=load_s,
        fresh_s=fresh_s,
        again_s=again_s,
        around_s=before_s + after_s,
        host=peak_bytes(torch.device("cpu")) + min(different * kept, stage.cache_mib * MIB),
        gpu=peak_bytes(device) if device.type == "cuda" else 0,
    )


def few(domains: Domains, count: int) -> Domains:
    """Return the first images of each split and domain."""
    target = domains.target
    train, val, test = (
        images.part(images.items[:count]) for images in (target.train, target.val, target.test)
    )
    first, held_out = (images.part(images.items[:count]) for images in domains.proximity)
    few_labelled = replace(target, train=train, val=val, test=test)
    return replace(domains, target=few_labelled, proximity=(first, held_out))


def extrapolated(action: Callable[[int], T], count: Callable[[T], int]) -> tuple[T, float]:
    """Do something with few images, and extrapolate its seconds linearly to many.

    Args:
        action: takes how many images; it is called with 1, for warming up, 1 and 4.
        count: from a result of the action to how many images it will be done with.

    Returns:
        A result of the action, and the seconds for that many images.
    """
    result, first = _timed(lambda: action(1))
    if first > _SLOW_S:
        return result, first * count(result)
    _, one = _timed(lambda: action(1))
    result, four = _timed(lambda: action(4))
    each = max(0.0, four - one) / 3
    return result, max(0.0, one - each) + count(result) * each


def _steps(stage: Stage, epoch: int) -> int:
    """Return the steps of a stage that runs to its bound; epoch: images an epoch."""
    by_epochs = stage.max_epochs * max(1, epoch // stage.batch_size)
    return min((n for n in (stage.max_steps, by_epochs) if n > 0), default=0)


def _draw(data: StageData, batch_size: int, decode: StageData | None) -> _Drawn:
    """Draw the first batches; with `decode`, which keeps no views, from images decoded before."""
    sampler = StageBatches(data, batch_size)
    keys = [batch for epoch in range(_BATCHES) for batch in sampler.batches(epoch)]
    found: list[tuple[Batch, float, float]] = []
    started = time.perf_counter()
    for some in keys[:_BATCHES]:
        if decode is not None:
            [decode[key] for key in some]
        batch, draw_s = _timed(partial(_load, data, some))
        _, load_s = _timed(partial(_load, data, some))
        found.append((batch, draw_s, load_s if data.views else draw_s))
        if time.perf_counter() - started > _BUDGET_S:
            break
    batches, draw, load = zip(*found, strict=True)
    return list(batches), statistics.median(draw), statistics.median(load)


def _load(data: StageData, keys: list[Key]) -> Batch:
    batch: Batch = default_collate([data[key] for key in keys])
    return batch


class _Clock(Callback):
    """Notes when steps start, and stops the training when the time is up."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Note the start of a step, which is the end of the one before."""
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize(trainer.strategy.root_device)
        self.marks.append(time.perf_counter())
        if self.marks[-1] - self.marks[0] > _BUDGET_S:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Note the end of the last step."""
        self.on_train_batch_start(trainer)


def _train(module: StageModule, batches: list[Batch], config: Trainer) -> tuple[float, float]:
    """Train on each batch twice; return the median seconds of first and second steps on one."""
    clock = _Clock()
    trainer = lightning_trainer(
        config,
        logger=False,
        enable_checkpointing=False,
        max_epochs=1,
        callbacks=[clock],
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    loader = DataLoader([one for batch in batches for one in (batch, batch)], batch_size=None)  # type: ignore[arg-type, var-annotated]
    with quiet(), interruptible():
        trainer.fit(module, loader)
    times = [end - start for start, end in itertools.pairwise(clock.marks)]
    again = times[1::2] or times
    fresh = times[2::2] or times[:1]  # the very first step is slower
    again_s = statistics.median(again)
    return max(again_s, statistics.median(fresh)), again_s


def _timed(action: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    result = action()
    return result, time.perf_counter() - started
