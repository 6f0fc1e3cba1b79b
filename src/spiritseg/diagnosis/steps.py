"""A few real steps of a stage, on its real images: shapes, memory and times."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from spiritseg.config import Experiment
from spiritseg.data.domains import Domains
from spiritseg.data.sampling import Key, StageBatches, StageData
from spiritseg.models import Segmenter
from spiritseg.models.ensemble import stage_teacher
from spiritseg.training.allocator import freed_memory_kept
from spiritseg.training.measure import layer_statistics
from spiritseg.training.optim import build_optimizer
from spiritseg.training.stage import StageModule
from spiritseg.training.terms import layer_pairs

__all__ = ["StageCost", "measure_stage"]

_ROUNDS = 3
_BUDGET_S = 12.0  # of a stage; a slow one gets one round

Shape = tuple[int, ...]


@dataclass(frozen=True)
class StageCost:
    """What a few steps of a stage showed.

    Args:
        images: target and proximity images that it draws from.
        epoch: images an epoch.
        student: (B, C, h, w) of the outputs that its losses need, by name.
        teacher: the same of its teacher.
        saved: bytes that a step keeps for its backward pass.
        weights: bytes of what trains, its gradients and the optimizer's state, of what is
            frozen beside it, and of the average of the weights.
        kept: bytes of the frozen outputs of one view, in half precision; 0 where nothing is kept.
        load_s: seconds to load a batch of decoded images, whose views are kept already where
            the stage keeps any.
        draw_s: of one whose views are drawn.
        step_s: of a step whose frozen outputs are kept already.
        fresh_s: of one that computes them.
    """

    images: tuple[int, int]
    epoch: int
    student: dict[str, Shape]
    teacher: dict[str, Shape]
    saved: int
    weights: int
    kept: int
    load_s: float
    draw_s: float
    step_s: float
    fresh_s: float


def measure_stage(
    name: str,
    experiment: Experiment,
    networks: dict[str, Segmenter],
    domains: Domains,
    device: torch.device,
) -> StageCost:
    """Train a stage for a few steps; its network is changed by them.

    Args:
        name: of the stage.
        experiment: whose stage it is.
        networks: built.
        domains: the opened images.
        device: where to train.

    Raises:
        SpiritsegError: what would stop the real run too.
    """
    stage = experiment.stages[name]
    network, teacher = networks[stage.network], stage_teacher(stage, networks)
    images, styles = domains.train(stage), domains.styles(stage)
    data = StageData(images, stage, experiment, name, styles)
    dry = StageData(images, replace(stage, views=0), experiment, name, styles)
    mimicry, statistics_ = stage.losses.mimicry, None
    if mimicry is not None and mimicry.normalise and teacher is not None:
        layers = set(layer_pairs(mimicry).values())
        some = [torch.utils.data.Subset(one, range(1)) for one in data.prepared()]
        statistics_ = layer_statistics(teacher, layers, some, device)
    module = StageModule(
        name,
        stage,
        network,
        teacher,
        statistics_,
        experiment.seed,
        channels_last=experiment.trainer.channels_last,
        classes=domains.classes.names,
    )
    module.setup("fit")
    module.to(device).train()
    if teacher is not None:
        teacher.to(device)
        if experiment.trainer.channels_last:
            teacher.to(memory_format=torch.channels_last)
    with freed_memory_kept():  # as in a run
        return _measured(module, data, dry, experiment, device)


def _measured(
    module: StageModule,
    data: StageData,
    dry: StageData,
    experiment: Experiment,
    device: torch.device,
) -> StageCost:
    stage = module.stage
    optimizer = build_optimizer(stage.optimizer, module.trained_parameters())
    if module.critic is not None:
        module.critic.start(max(1, stage.max_steps))
    batches = StageBatches(data, stage.batch_size)
    keys = [key for epoch in range(2) for key in batches.batches(epoch)]
    keys = (keys * (_ROUNDS + 1))[: _ROUNDS + 1]
    started = time.perf_counter()
    draw, load, fresh, again = [], [], [], []
    outputs: Any = None
    saved = 0
    for number, some in enumerate(keys):
        batch, drawn, loaded = _batch(data, dry, some, device)
        draw.append(drawn)
        load.append(loaded)
        with _saved_bytes() if not number else contextlib.nullcontext([0]) as count:
            first, outputs = _step(module, batch, optimizer, experiment, device)
        saved = saved or count[0]
        second = _step(module, batch, optimizer, experiment, device)[0] if stage.views else first
        if number or time.perf_counter() - started > _BUDGET_S:
            fresh.append(first)
            again.append(second)
        if time.perf_counter() - started > _BUDGET_S:
            break
    return StageCost(
        images=data.counts,
        epoch=len(data),
        student={k: tuple(v.shape) for k, v in outputs.student.items()},
        teacher={k: tuple(v.shape) for k, v in outputs.teacher.items()},
        saved=saved,
        weights=_weights_bytes(module, optimizer),
        kept=_kept_bytes(module, outputs) if stage.views else 0,
        load_s=statistics.median(load),
        draw_s=max(statistics.median(draw), statistics.median(load)),
        step_s=statistics.median(again),
        fresh_s=max(statistics.median(fresh), statistics.median(again)),
    )


def _batch(
    data: StageData, dry: StageData, keys: list[Key], device: torch.device
) -> tuple[dict[str, Tensor], float, float]:
    """Return a batch, the seconds to draw it, and to load it again where its views are kept."""
    for key in keys:  # the same draws, not kept: what fits the memory is decoded after them
        dry[key]
    batch, times = {}, []
    for _ in range(2 if data.views else 1):
        started = time.perf_counter()
        samples = [data[key] for key in keys]
        batch = {k: v.to(device) for k, v in default_collate(samples).items()}
        times.append(time.perf_counter() - started)
    return batch, times[0], times[-1]


def _step(
    module: StageModule,
    batch: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    experiment: Experiment,
    device: torch.device,
) -> tuple[float, Any]:
    """Take one step, as the stage does without its logs; return its seconds."""
    _wait(device)
    started = time.perf_counter()
    with _precision(experiment.trainer.precision, device):
        outputs = module.outputs(batch)
        total = torch.stack([t.weight * t.compute(outputs) for t in module.terms.values()]).sum() \
            if module.terms else torch.zeros((), device=device)  # fmt: skip
        if module.critic is not None:
            student, teacher = outputs.student["logits"], outputs.teacher["logits"]
            module.critic.step(student, teacher, outputs.images, outputs.valid, module.seed)
            holistic = module.critic(student, outputs.images, outputs.valid)
            total = total + module.critic.config.weight * holistic
    optimizer.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    _wait(device)
    return time.perf_counter() - started, outputs


def _precision(name: str, device: torch.device) -> Any:
    kinds = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
    return torch.autocast(device.type, kinds.get(name), enabled=name in kinds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _saved_bytes() -> Iterator[list[int]]:
    """Count the bytes that autograd keeps for the backward pass; weights are left out."""
    total = [0]
    seen: set[int] = set()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter) and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total


def _weights_bytes(module: StageModule, optimizer: torch.optim.Optimizer) -> int:
    trained = list(module.trained_parameters())
    state = (v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor))
    total = sum(2 * p.nbytes for p in trained) + sum(v.nbytes for v in state)
    teacher = module.teacher
    frozen = [p for part in module.frozen_parts() for p in part.parameters()]
    frozen += list(teacher.parameters()) if teacher is not None else []
    if module.average is not None:  # a second copy of what trains
        frozen += list(module.average.parameters())
    return total + sum(p.nbytes for p in frozen)


def _kept_bytes(module: StageModule, outputs: Any) -> int:
    """Return the bytes of half precision of an image's frozen outputs."""
    kept = list(outputs.teacher.values())
    if module.stage.trains == "head":
        kept.append(outputs.student["features"])
    return sum(2 * x[0].numel() for x in kept)
