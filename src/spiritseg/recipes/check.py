"""What must hold between the fields of an experiment; all of it is looked at, then reported."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

from spiritseg.config import (
    MAX_CHANNELS,
    CrossEntropy,
    Experiment,
    Network,
    Optimizer,
    Stage,
)
from spiritseg.errors import unknown

__all__ = ["check"]

# Names of stages and networks become names of files in the run's folder.
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")

# ImageNet's: they train a trunk, and leave the head of a segmentation network as it is drawn.
_TRUNK_WEIGHTS = ("DEFAULT", "IMAGENET1K_V1", "IMAGENET1K_V2")
_TRUNK_WORDS = ("backbone", "encoder", "trunk")  # in the names of constructors' arguments


def check(experiment: Experiment, complete: bool = True) -> list[str]:
    """List everything that is wrong with an experiment, before anything is read or written.

    Args:
        experiment: its fields have the right types already.
        complete: whether the folders of images must be named.

    Returns:
        One line a problem: the field, what was expected, what came.
    """
    problems = [*_check_names(experiment), *_check_input(experiment)]
    if complete:
        problems += _check_roots(experiment)
    for name, network in experiment.networks.items():
        problems += _check_network(name, network, experiment)
    for name, stage in experiment.stages.items():
        problems += _check_stage(f"stages.{name}", stage, experiment)
    if complete:
        problems += _check_taught(experiment)
    result = experiment.networks.get(experiment.result)
    if result is not None and not _has_head(result):
        problems.append(f"result: {experiment.result} has no head, so no masks to measure")
    if not experiment.stages:
        problems.append("stages: a recipe needs at least one stage")
    if experiment.result not in experiment.networks:
        problems.append(f"result: {unknown('network', experiment.result, experiment.networks)}")
    return problems


def _check_names(experiment: Experiment) -> Iterator[str]:
    for kind in ("networks", "stages"):
        for name in getattr(experiment, kind):
            if not _NAME.fullmatch(name):
                yield (
                    f"{kind}.{name}: expected a name of letters (A to Z, a to z), digits, _, - and "
                    f"., no dot first, 100 characters at most, got {name!r}"
                )


def _check_input(experiment: Experiment) -> Iterator[str]:
    given = experiment.input
    if given.crop < 1:
        yield f"input.crop: expected a positive number of pixels, got {given.crop}"
    if given.pool < 1:
        yield f"input.pool: expected 1 or more, got {given.pool}"
    elif given.crop % given.pool:
        yield f"input.crop: {given.crop} is not a multiple of input.pool ({given.pool})"
    for field, value in (("flip", given.flip), ("jitter", given.jitter)):
        if not 0 <= value <= 1:
            yield f"input.{field}: expected 0 to 1, got {value}"
    if not 0 < given.scale[0] <= given.scale[1]:
        yield f"input.scale: expected 0 < low <= high, got {given.scale}"
    if not 0 <= experiment.proximity.held_out < 1:
        yield f"proximity.held_out: expected 0 to below 1, got {experiment.proximity.held_out}"
    if not 0 <= experiment.evaluation.threshold <= 1:
        yield f"evaluation.threshold: expected 0 to 1, got {experiment.evaluation.threshold}"
    for field, value, least in (
        ("input.cache_mib", given.cache_mib, 0),
        ("evaluation.batch_size", experiment.evaluation.batch_size, 1),
        ("evaluation.pictures", experiment.evaluation.pictures, 0),
        ("trainer.workers", experiment.trainer.workers, 0),
    ):
        if value < least:
            yield f"{field}: expected {least} or more, got {value}"


def _check_roots(experiment: Experiment) -> Iterator[str]:
    target = experiment.target
    if target.root is None and target.dataset != "scenes":
        yield (
            "target.root: expected the folder of the labelled images, got nothing; "
            "pass --target.root DIR, or --target.dataset scenes for the embedded scenes"
        )
    needs = any(s.images != "target" or s.fourier for s in experiment.stages.values())
    if needs and experiment.proximity.root is None and experiment.proximity.dataset != "scenes":
        yield (
            "proximity.root: a stage takes proximity images, got no folder; pass "
            "--proximity.root DIR, or --proximity.dataset scenes for the embedded scenes"
        )


def _check_taught(experiment: Experiment) -> Iterator[str]:
    """Yield the teachers whose logits would be noise: nothing ever trained their heads."""
    trained: set[str] = set()
    for name, stage in experiment.stages.items():
        if stage.losses.pixelwise or stage.losses.holistic:
            for one in (stage.teacher or "", *stage.co_teachers):
                if one in experiment.networks and one not in trained:
                    yield from _check_head(f"stages.{name}.teacher", one, experiment.networks[one])
        if stage.trains in ("all", "head"):
            trained.add(stage.network)


def _check_head(where: str, name: str, teacher: Network) -> Iterator[str]:
    """Yield a problem where a teacher that no stage trains has a head with fresh weights."""
    if not _has_trained_head(teacher):
        yield (
            f"{where}: the head of {name!r} is untrained. Pass --networks.{name}.bundle "
            "RUN/student (train one with: spiritseg distill teacher), or train it in a stage "
            "before"
        )


def _has_trained_head(network: Network) -> bool:
    """Say whether a network comes with a head that is trained already."""
    extractor = network.extractor
    if network.bundle is not None or network.head.name != "own":
        return network.bundle is not None
    if extractor.weights != "random":
        trunk_only = extractor.name == "deeplabv3_resnet50" and extractor.weights in _TRUNK_WEIGHTS
        return not trunk_only
    asked = [name for name, value in extractor.args.items() if value]
    return any(
        name == "pretrained" or ("weights" in name and not any(w in name for w in _TRUNK_WORDS))
        for name in asked
    )


def _has_head(network: Network) -> bool:
    return network.bundle is not None or network.head.name != "none"


def _check_network(name: str, network: Network, experiment: Experiment) -> Iterator[str]:
    of = network.extractor.of
    where = f"networks.{name}.extractor.of"
    if network.bundle is not None:
        return
    head, project = network.head, network.extractor.project
    if head.name in ("student", "pyramid") and not 1 <= head.channels <= MAX_CHANNELS:
        expected = "1 or more" if head.channels < 1 else f"{MAX_CHANNELS} or fewer"
        yield f"networks.{name}.head.channels: expected {expected}, got {head.channels}"
    if not 0 <= project <= MAX_CHANNELS:
        yield (
            f"networks.{name}.extractor.project: expected 0 to {MAX_CHANNELS} channels, "
            f"got {project}"
        )
    if of is not None and of not in experiment.networks:
        yield f"{where}: {unknown('network', of, experiment.networks)}"
    if of is None and network.extractor.name in ("copy", "compact", "separable"):
        yield f"{where}: {network.extractor.name} needs the name of another network, got nothing"


def _check_stage(where: str, stage: Stage, experiment: Experiment) -> Iterator[str]:
    if stage.network not in experiment.networks:
        yield f"{where}.network: {unknown('network', stage.network, experiment.networks)}"
    if stage.teacher is not None and stage.teacher not in experiment.networks:
        yield f"{where}.teacher: {unknown('network', stage.teacher, experiment.networks)}"
    if stage.teacher is not None and stage.teacher == stage.network:
        yield f"{where}.teacher: {stage.teacher} cannot teach itself"
    if stage.teacher is not None and not _used(stage).keys() - {"cross_entropy"}:
        yield f"{where}.teacher: no loss of the stage reads {stage.teacher}; expected one that does"
    yield from _check_co_teachers(f"{where}.co_teachers", stage, experiment)
    yield from _check_views(where, stage, experiment)
    if not 0 <= stage.average < 1:
        yield f"{where}.average: expected 0 to below 1, got {stage.average}"
    yield from _check_losses(where, stage, experiment)
    if stage.ratio < 0:
        yield f"{where}.ratio: r = |Dt| : |Dp| is 0 or more, got {stage.ratio}"
    if stage.max_steps <= 0 and stage.max_epochs <= 0:
        yield f"{where}.max_steps: expected a bound here or in max_epochs, got none"
    for field in ("max_steps", "max_epochs", "patience", "views", "cache_mib"):
        if getattr(stage, field) < 0:
            yield f"{where}.{field}: expected 0 or more, got {getattr(stage, field)}"
    if stage.batch_size < 1:
        yield f"{where}.batch_size: expected 1 or more, got {stage.batch_size}"
    yield from _check_optimizer(where, stage.optimizer)


def _check_views(where: str, stage: Stage, experiment: Experiment) -> Iterator[str]:
    if not 0 <= stage.fourier <= 1:
        yield f"{where}.fourier: expected 0 to 1, got {stage.fourier}"
    elif stage.fourier and stage.images == "proximity":
        yield f"{where}.fourier: it changes target images, and the stage takes proximity images"
    if stage.jitter is not None and not 0 <= stage.jitter <= 1:
        yield f"{where}.jitter: expected 0 to 1, got {stage.jitter}"
    if stage.scale is not None and not 0 < stage.scale[0] <= stage.scale[1]:
        yield f"{where}.scale: expected 0 < low <= high, got {stage.scale}"
    if stage.teacher_view == "same":
        return
    jitter = experiment.input.jitter if stage.jitter is None else stage.jitter
    if not jitter and not stage.fourier:
        yield f"{where}.teacher_view: plain leaves out jitter and fourier, and both are 0"
    if not _used(stage).keys() - {"cross_entropy"}:
        yield f"{where}.teacher_view: plain is for a teacher, and no loss of the stage reads one"


def _used(stage: Stage) -> dict[str, Any]:
    """Return the losses of a stage, by name."""
    names = (field.name for field in dataclasses.fields(stage.losses))
    return {name: loss for name in names if (loss := getattr(stage.losses, name)) is not None}


def _check_co_teachers(where: str, stage: Stage, experiment: Experiment) -> Iterator[str]:
    if stage.co_teachers and stage.teacher is None:
        yield f"{where}: they go beside a teacher, got none"
    seen = {stage.network, stage.teacher}
    for name in stage.co_teachers:
        if name not in experiment.networks:
            yield f"{where}: {unknown('network', name, experiment.networks)}"
        elif name in seen:
            yield f"{where}: {name} is the student, the teacher or named twice"
        seen.add(name)
    if stage.co_teachers and not (stage.losses.pixelwise or stage.losses.holistic):
        yield f"{where}: no loss reads their class distributions; expected pixelwise or holistic"


def _check_optimizer(where: str, optimizer: Optimizer) -> Iterator[str]:
    if optimizer.lr <= 0:
        yield f"{where}.optimizer.lr: expected more than 0, got {optimizer.lr}"
    if optimizer.weight_decay < 0:
        yield f"{where}.optimizer.weight_decay: expected 0 or more, got {optimizer.weight_decay}"
    if not 0 <= optimizer.momentum < 1:
        yield f"{where}.optimizer.momentum: expected 0 to below 1, got {optimizer.momentum}"
    if not 0 < optimizer.warmup < 1:
        yield f"{where}.optimizer.warmup: expected between 0 and 1, got {optimizer.warmup}"


def _check_weighting(where: str, loss: CrossEntropy) -> Iterator[str]:
    for name, value in loss.class_weights.items():
        if not 0 <= value < math.inf:
            yield f"{where}.class_weights: expected 0 or more for {name}, got {value}"
    if not 0 <= loss.boundary < math.inf:
        yield f"{where}.boundary: expected 0 or more, got {loss.boundary}"
    if loss.boundary_width < 1:
        yield f"{where}.boundary_width: expected 1 or more, got {loss.boundary_width}"


def _check_losses(where: str, stage: Stage, experiment: Experiment) -> Iterator[str]:
    losses, used = stage.losses, _used(stage)
    if not used:
        yield f"{where}.losses: a stage needs at least one loss"
    for name, loss in used.items():
        if name != "cross_entropy" and stage.teacher is None:
            yield f"{where}.teacher: {name} needs a teacher, got none"
        if loss.weight < 0:
            yield f"{where}.losses.{name}.weight: expected 0 or more, got {loss.weight}"
    teacher = experiment.networks.get(stage.teacher or "")
    for name in used.keys() & {"pixelwise", "holistic"}:
        if teacher is not None and not _has_head(teacher):
            yield f"{where}.teacher: {name} needs logits, {stage.teacher} has no head"
    whole = used.keys() & {"cross_entropy", "pixelwise", "holistic"}
    network = experiment.networks.get(stage.network)
    if network is not None and whole and not _has_head(network):
        names = " and ".join(sorted(whole))
        yield f"{where}.network: logits for {names} need a head, {stage.network} has none"
    layered = any(getattr(v, "layers", None) for v in used.values())
    alone = bool(used) and not whole and not layered
    if alone and stage.trains != "extractor":
        names = " and ".join(used)
        yield f"{where}.trains: {names} alone trains an extractor, got {stage.trains!r}"
    if losses.cross_entropy is not None and stage.images == "proximity":
        yield f"{where}.images: cross-entropy needs labels, which proximity images have not"
    if losses.cross_entropy is not None:
        yield from _check_weighting(f"{where}.losses.cross_entropy", losses.cross_entropy)
    if losses.mimicry is not None and losses.mimicry.centre and not losses.mimicry.normalise:
        yield f"{where}.losses.mimicry.centre: it needs normalise: true"
    if losses.pixelwise is not None and losses.pixelwise.temperature <= 0:
        yield f"{where}.losses.pixelwise.temperature: expected more than 0"
    if losses.pixelwise is not None and not 0 <= losses.pixelwise.confidence <= 1:
        yield f"{where}.losses.pixelwise.confidence: expected 0 to 1"
    if losses.pairwise is not None and losses.pairwise.node_size <= 0:
        yield f"{where}.losses.pairwise.node_size: expected more than 0"
    if losses.holistic is not None:
        yield from _check_optimizer(f"{where}.losses.holistic", losses.holistic.optimizer)
    if stage.trains == "head" and not alone:
        for name in [one for one in ("mimicry", "pairwise") if one in used]:
            for layer in used[name].layers or ("features",):
                if not layer.startswith("head."):
                    yield (
                        f"{where}.losses.{name}.layers: {layer} does not train, since the stage "
                        "trains the head; expected layers of the head"
                    )
