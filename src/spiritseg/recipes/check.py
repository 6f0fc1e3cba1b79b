"""What must hold between the fields of an experiment; all of it is looked at, then reported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress

from spiritseg.config import Experiment, Network, Stage
from spiritseg.data.layouts import needs_root
from spiritseg.errors import ConfigError, unknown
from spiritseg.losses import used_losses
from spiritseg.models import HEADS
from spiritseg.models.sources import source_of

__all__ = ["check"]

# Names of stages and networks become names of files in the run's folder.
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")


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
    if given.crop % given.pool:
        yield f"input.crop: {given.crop} is not a multiple of input.pool ({given.pool})"


def _check_roots(experiment: Experiment) -> Iterator[str]:
    unlabelled = any(stage.needs_proximity for stage in experiment.stages.values())
    for name, what in (("target", "labelled"), ("proximity", "unlabelled")):
        images = getattr(experiment, name)
        if images.root is not None or (name == "proximity" and not unlabelled):
            continue
        try:
            lacks = needs_root(images.dataset)
        except ConfigError as error:
            yield f"{name}.dataset: {error}"
            continue
        if lacks:
            yield (
                f"{name}.root: expected the folder of the {what} images, got nothing; pass "
                f"--{name}.root DIR, or --{name}.dataset scenes for the embedded scenes"
            )


def _check_taught(experiment: Experiment) -> Iterator[str]:
    """Yield the teachers whose logits would be noise: nothing ever trained their heads."""
    trained: set[str] = set()
    for name, stage in experiment.stages.items():
        if "logits" in _read_of_teacher(stage):
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
    """Return whether a network comes with a trained head."""
    if network.bundle is not None:
        return True
    with suppress(ConfigError):  # an unknown name is reported by itself
        source = source_of(network.extractor.name)
        return HEADS[network.head.name].own and source.trained_head(network.extractor)
    return True


def _has_head(network: Network) -> bool:
    with suppress(ConfigError):
        return network.bundle is not None or HEADS[network.head.name].gives_logits
    return True


def _check_network(name: str, network: Network, experiment: Experiment) -> Iterator[str]:
    if network.bundle is not None:
        return
    try:
        _, source = HEADS[network.head.name], source_of(network.extractor.name)
    except ConfigError as error:
        yield f"networks.{name}: {error}"
        return
    of, where = network.extractor.base, f"networks.{name}.extractor.base"
    if of is not None and of not in experiment.networks:
        yield f"{where}: {unknown('network', of, experiment.networks)}"
    if of is None and source.of_network:
        yield f"{where}: {network.extractor.name} needs the name of another network, got nothing"


def _check_stage(where: str, stage: Stage, experiment: Experiment) -> Iterator[str]:
    for role, name in (("network", stage.network), ("teacher", stage.teacher)):
        if name is not None and name not in experiment.networks:
            yield f"{where}.{role}: {unknown('network', name, experiment.networks)}"
    if stage.teacher is not None and stage.teacher == stage.network:
        yield f"{where}.teacher: {stage.teacher} cannot teach itself"
    if stage.teacher is not None and not _read_of_teacher(stage):
        yield f"{where}.teacher: no loss of the stage reads {stage.teacher}; expected one that does"
    yield from _check_co_teachers(f"{where}.co_teachers", stage, experiment)
    yield from _check_views(where, stage, experiment)
    yield from _check_losses(where, stage, experiment)
    yield from _check_layers(where, stage)
    if stage.max_steps <= 0 and stage.max_epochs <= 0:
        yield f"{where}.max_steps: expected a bound here or in max_epochs, got none"


def _check_views(where: str, stage: Stage, experiment: Experiment) -> Iterator[str]:
    if stage.fda_prob and stage.images == "proximity":
        yield f"{where}.fourier: it changes target images, and the stage takes proximity images"
    if stage.teacher_view == "same":
        return
    jitter = experiment.input.jitter if stage.jitter is None else stage.jitter
    if not jitter and not stage.fda_prob:
        yield f"{where}.teacher_view: plain leaves out jitter and fourier, and both are 0"
    if not _read_of_teacher(stage):
        yield f"{where}.teacher_view: plain is for a teacher, and no loss of the stage reads one"


def _check_co_teachers(where: str, stage: Stage, experiment: Experiment) -> Iterator[str]:
    if stage.co_teachers and stage.teacher is None:
        yield f"{where}: expected a teacher as well, got none"
    seen = {stage.network, stage.teacher}
    for name in stage.co_teachers:
        if name not in experiment.networks:
            yield f"{where}: {unknown('network', name, experiment.networks)}"
        elif name in seen:
            yield f"{where}: {name} is the student, the teacher or named twice"
        seen.add(name)
    if stage.co_teachers and "logits" not in _read_of_teacher(stage):
        yield f"{where}: no loss reads their class distributions; expected one such as pixelwise"


def _check_losses(where: str, stage: Stage, experiment: Experiment) -> Iterator[str]:
    if not stage.losses:
        yield f"{where}.losses: a stage needs at least one loss"
    network, teacher = (
        experiment.networks.get(name or "") for name in (stage.network, stage.teacher)
    )
    for name, loss, options in used_losses(stage.losses):
        for problem in loss.problems(options, None):
            yield f"{where}.losses.{name}.{problem}"
        if loss.labels and stage.images == "proximity":
            yield f"{where}.images: {name} needs labels, which proximity images have not"
        wanted = loss.teacher(options)
        if wanted and stage.teacher is None:
            yield f"{where}.teacher: {name} needs a teacher, got none"
        if teacher is not None and "logits" in wanted and not _has_head(teacher):
            yield f"{where}.teacher: {name} needs logits, {stage.teacher} has no head"
        if network is not None and "logits" in loss.student(options) and not _has_head(network):
            yield f"{where}.network: logits for {name} need a head, {stage.network} has none"


def _check_layers(where: str, stage: Stage) -> Iterator[str]:
    """Yield losses that would train nothing: those of layers before the part that trains."""
    read = {name: loss.student(options) for name, loss, options in used_losses(stage.losses)}
    if read and all(layers == {"features"} for layers in read.values()):
        if stage.trains != "extractor":
            names = " and ".join(read)
            yield f"{where}.trains: {names} alone trains an extractor, got {stage.trains!r}"
    elif stage.trains == "head":
        for name, layers in read.items():
            for layer in sorted(layers - {"logits"}):
                if not layer.startswith("head."):
                    yield (
                        f"{where}.losses.{name}.layers: {layer} does not train, since the stage "
                        "trains the head; expected layers of the head"
                    )


def _read_of_teacher(stage: Stage) -> frozenset[str]:
    """Return the outputs of the teacher that the losses of a stage read."""
    used = used_losses(stage.losses)
    return frozenset[str]().union(*(loss.teacher(options) for _, loss, options in used))
