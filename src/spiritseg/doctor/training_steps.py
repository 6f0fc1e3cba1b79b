"""A few real training steps of each stage: time and memory of the whole run on this machine."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from spiritseg.config import Stage, Trainer
from spiritseg.data.domains import Domains
from spiritseg.data.sampling import Key, StageBatches, StageData
from spiritseg.doctor.findings import Examination, Known, reason
from spiritseg.errors import SpiritsegError
from spiritseg.evaluation.cost import ROUNDS, WARM_UP
from spiritseg.training.allocator import freed_memory_kept
from spiritseg.training.measure import (
    HELD_OUT_IMAGES,
    STATISTICS_IMAGES,
    score,
    stage_figures,
    teacher_statistics,
)
from spiritseg.training.stage import StageModule, stage_module
from spiritseg.training.trainer import interruptible, lightning_trainer, quiet

__all__ = ["StageCost", "examine_training", "measure_stage"]

_MIB = 2**20
_CPU = torch.device("cpu")
_BATCHES = 3
_BUDGET_S = 4.0  # of drawing batches, and of steps; what is slower gets one batch
_SLOW_S = 1.0  # an image
_STAGE_S = 3.0  # Lightning's start and end of a stage, with its loggers and checkpoints

T = TypeVar("T")
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class StageCost:
    """What a few steps of a stage showed; a new step is one on views that were not seen before.

    Args:
        steps: Steps of the whole stage, run to its bound.
        batch_size: Images a step.
        different: Different views that the whole stage shows.
        repeats: Whether views come again, so that they and outputs of frozen parts are kept.
        cache: Bytes that the stage may use to keep frozen outputs.
        kept: Bytes of the kept frozen outputs of one view.
        new_s: Seconds of a new step, from decoded images on.
        again_s: Seconds of a step whose views and frozen outputs are kept.
        around_s: Seconds of the statistics before, and the figures after the whole stage.
        host: Peak bytes of this process, and what the cache will take; 0 where not known.
        gpu: Peak bytes on the GPU; 0 without one.
    """

    steps: int
    batch_size: int
    different: int
    repeats: bool
    cache: int
    kept: int
    new_s: float
    again_s: float
    around_s: float = 0.0
    host: int = 0
    gpu: int = 0

    @property
    def kept_share(self) -> float:
        """The share of the different views whose frozen outputs fit the cache."""
        if not self.repeats:
            return 0.0
        wanted = self.different * self.kept
        return min(1.0, self.cache / wanted) if wanted else 1.0

    @property
    def computed(self) -> float:
        """How many images have their frozen outputs computed in the whole stage."""
        # What is kept is computed once; what does not fit, each time that it comes.
        kept = self.different * self.kept_share
        return kept + (self.steps * self.batch_size - kept) * (1 - self.kept_share)

    @property
    def seconds(self) -> float:
        """Seconds of the whole stage."""
        new = self.computed / self.batch_size
        return new * self.new_s + (self.steps - new) * self.again_s + self.around_s + _STAGE_S


def examine_training(found: Examination, known: Known) -> None:
    """Train each stage for a few steps, and extrapolate the run's memory and time."""
    given = known.experiment
    _check_decoded(found, known)
    if known.domains is None or len(known.networks) < len(given.networks):
        found.warn("stages", "not measured before the problems above are mended")
        return
    device = lightning_trainer(
        given.trainer, logger=False, enable_checkpointing=False
    ).strategy.root_device
    costs: dict[str, StageCost] = {}
    with freed_memory_kept():  # as in a run
        for name in known.tracked(given.stages, "training steps", len(given.stages)):
            try:
                costs[name] = measure_stage(name, known, device)
            except SpiritsegError as error:
                found.refused(f"stages.{name}", f"it does not run: {error}")
            except Exception as error:  # such as too little memory, or a layer of the user's own
                half = max(1, given.stages[name].batch_size // 2)
                advice = f"--stages.{name}.batch_size {half}, or a smaller --input.crop"
                found.problem(f"stages.{name}", f"it does not run: {reason(error)}", advice)
        if costs:
            _report_time(found, known, costs, _result_seconds(known, known.domains), device)
            _report_memory(found, known, costs, device)


def measure_stage(name: str, known: Known, device: torch.device) -> StageCost:
    """Train a stage for a few steps, as in a run but without its folder.

    Args:
        name: Name of the stage.
        known: With the opened images and all networks; the stage's network is changed.
        device: Where to train.

    Raises:
        SpiritsegError: what would stop the run as well.
    """
    assert known.domains is not None, "the images are opened"
    domains, networks, stage = known.domains, known.networks, known.experiment.stages[name]
    dry = known.dry
    _reset_peak(device)

    def data(images: Domains, stage: Stage = stage) -> StageData:
        return StageData(images.train(stage), stage, dry, name, images.styles(stage))

    whole = data(domains)
    counts = [min(STATISTICS_IMAGES, count) for count in whole.counts if count]
    found, before_s = _extrapolated(
        lambda n: teacher_statistics(stage, networks, data(_few(domains, n)), device),
        lambda _: sum(counts) // len(counts),
    )
    module = stage_module(name, dry, networks, domains.classes.names, found)
    decode = data(domains, replace(stage, num_views=0)) if known.images_fit else None
    batches, draw_s, load_s = _draw(whole, stage.batch_size, decode)
    fresh_s, again_s = _train(module, batches, dry.trainer)
    held_out = min(HELD_OUT_IMAGES, max(map(len, domains.held_out().values())))
    _, after_s = _extrapolated(
        lambda n: stage_figures(module, dry, _few(domains, n), device),
        lambda figures: len(domains.target.val) if "val" in figures else held_out,
    )
    kept = module.kept_bytes // sum(len(batch["index"]) for batch in batches)
    steps = _steps(stage, len(whole))
    different = steps * stage.batch_size
    if stage.num_views:
        different = min(different, stage.num_views * sum(whole.counts))
    cache = stage.cache_mib * _MIB
    host = _proc("self/status", "VmHWM")  # the peak since the reset
    return StageCost(
        steps=steps,
        batch_size=stage.batch_size,
        different=different,
        repeats=stage.num_views > 0,
        cache=cache,
        kept=kept,
        new_s=draw_s + fresh_s,
        again_s=load_s + again_s,
        around_s=before_s + after_s,
        host=host + min(different * kept, cache) if host else 0,
        gpu=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
    )


def _few(domains: Domains, count: int) -> Domains:
    """Return the first images of each split and domain."""
    target = domains.target
    train, val, test = (
        images.part(images.items[:count]) for images in (target.train, target.val, target.test)
    )
    first, held_out = (images.part(images.items[:count]) for images in domains.proximity)
    few_labelled = replace(target, train=train, val=val, test=test)
    return replace(domains, target=few_labelled, proximity=(first, held_out))


def _extrapolated(action: Callable[[int], T], count: Callable[[T], int]) -> tuple[T, float]:
    """Call an action with 1, 1 and 4 images; extrapolate its seconds linearly to `count`."""
    result, first = _timed(lambda: action(1))  # warms up
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


def _draw(
    data: StageData, batch_size: int, decode: StageData | None
) -> tuple[list[Batch], float, float]:
    """Draw the first batches; return the seconds to draw one, and to load it again, too.

    With `decode`, which keeps no views, the images are decoded before.
    """
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
    again_s = statistics.median(times[1::2] or times)
    fresh = times[2::2] or times[:1]  # the very first step is slower
    return max(again_s, statistics.median(fresh)), again_s


def _timed(action: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    result = action()
    return result, time.perf_counter() - started


def _result_seconds(known: Known, domains: Domains) -> float:
    """Return the seconds to measure the result: the test images, and its latency."""
    network, classes = known.networks[known.experiment.result], list(known.classes)
    latency = WARM_UP + ROUNDS if known.experiment.evaluation.latency else 0
    _, seconds = _extrapolated(
        lambda n: score(network, _few(domains, n).evaluation("test"), classes, known.dry),
        lambda _: len(domains.target.test) + latency,
    )
    return seconds


def _check_decoded(found: Examination, known: Known) -> None:
    need = -(-known.nbytes // _MIB)
    what = f"all images decoded take {need} of {known.experiment.input.cache_mib} MiB"
    if known.images_fit:
        found.ok("input.cache_mib", what)
    else:
        found.warn(
            "input.cache_mib",
            f"{what}; what does not fit is decoded again each time",
            f"--input.cache_mib {need} if the machine has it, or trainer.workers above 0",
        )


def _report_time(
    found: Examination,
    known: Known,
    costs: Mapping[str, StageCost],
    result_s: float,
    device: torch.device,
) -> None:
    given = known.experiment
    gpu = ["GPU MiB"] if device.type == "cuda" else []
    table = [["stage", "steps", "ms a new step", "ms a step", "time", "MiB", *gpu]]
    total = known.read_s + result_s
    for name, cost in costs.items():
        total += cost.seconds
        times = [f"{1000 * one:.0f}" for one in (cost.new_s, cost.again_s)]
        sizes = (cost.host, cost.gpu)[: 1 + len(gpu)]
        memory = [f"{one / _MIB:.0f}" if one else "" for one in sizes]
        table.append([name, str(cost.steps), *times, _span(cost.seconds), *memory])
    for what, seconds in (("reading the images", known.read_s), ("measuring the result", result_s)):
        table.append([f"({what})", "", "", "", _span(seconds), "", *[""] * len(gpu)])
    found.tables["a few real steps of each stage, extrapolated"] = table
    stops = [name for name, stage in given.stages.items() if stage.patience]
    early = f"; {', '.join(stops)} may stop earlier (patience)" if stops else ""
    part = "the measured stages take" if len(costs) < len(given.stages) else "the run takes"
    found.ok("time", f"{part} about {_span(total)} on this machine ({device.type}){early}")


def _report_memory(
    found: Examination, known: Known, costs: Mapping[str, StageCost], device: torch.device
) -> None:
    stages = known.experiment.stages
    for name, cost in costs.items():
        _check_cache(found, name, stages[name], cost)
    assert known.domains is not None, "the images are opened"
    # Images that are not decoded yet will fill their cache during the run.
    rest = min(known.domains.target.train.cache.budget.left, known.nbytes)
    largest = max(costs, key=lambda name: costs[name].host)
    need = {"memory": (largest, costs[largest].host + rest, _free_bytes(_CPU))}
    if device.type == "cuda":
        largest = max(costs, key=lambda name: costs[name].gpu)
        need["GPU memory"] = largest, costs[largest].gpu, _free_bytes(device)
    for what, (name, nbytes, free) in need.items():
        if not free:  # a system that does not tell
            continue
        text = f"stage {name} needs the most, about {nbytes / _MIB:.0f} MiB"
        text += f"; {free / _MIB:.0f} MiB are free"
        if nbytes > 0.9 * free:
            half = max(1, stages[name].batch_size // 2)
            advice = f"--stages.{name}.batch_size {half}, or smaller caches (cache_mib)"
            found.warn(what, text, advice)
        else:
            found.ok(what, text)


def _check_cache(found: Examination, name: str, stage: Stage, cost: StageCost) -> None:
    wanted = cost.different * cost.kept
    if cost.kept_share == 1 or not cost.repeats:
        return
    found.warn(
        f"stages.{name}.cache_mib",
        f"frozen outputs of {100 * cost.kept_share:.0f} % of the views fit ({wanted / _MIB:.0f} "
        f"MiB wanted, cache_mib is {stage.cache_mib}); the others are computed again each time",
        f"--stages.{name}.cache_mib {-(-wanted // _MIB)}, or fewer views (now {stage.num_views})",
    )


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM


def _free_bytes(device: torch.device) -> int:
    """Return the bytes that this process can have, those in use included; 0 if not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)
    available = _proc("meminfo", "MemAvailable")
    return available + _proc("self/status", "VmRSS") if available else 0


def _proc(file: str, name: str) -> int:
    """Return the bytes of a line ``name: n kB`` below /proc; 0 on other systems than Linux."""
    with suppress(OSError):
        for line in Path("/proc", file).read_text().splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return 0


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
