"""Memory and time of a run on this machine, from a few real steps of each stage."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from spiritseg.config import Experiment, Pairwise, Stage
from spiritseg.data.datasets import LabelledImages, UnlabelledImages
from spiritseg.data.domains import Domains
from spiritseg.diagnosis.findings import Section
from spiritseg.diagnosis.images import Images
from spiritseg.diagnosis.steps import StageCost, measure_stage
from spiritseg.errors import SpiritsegError
from spiritseg.evaluation.predictions import label_maps
from spiritseg.losses.pairwise import cheaper_form, node_kernel
from spiritseg.models import Segmenter
from spiritseg.tables import Table
from spiritseg.training.terms import layer_pairs

__all__ = ["examine_costs", "kept_share", "misses", "pairwise_memory", "steps_of"]

_MIB = 2**20
_HELD_OUT = 32  # images a domain for the explained variance, see training.measure
_STAGE_S = 3.0  # Lightning's start and end of a stage
_LATENCY_S = 6.0
_DECODED = 2  # images of a set whose decoding is timed


def examine_costs(
    experiment: Experiment, networks: Mapping[str, Segmenter], images: Images
) -> Iterator[Section]:
    """Yield the sections on memory and time.

    Args:
        experiment: its stages are measured.
        networks: built; a few steps change them.
        images: opened; where something is wrong with them nothing is measured.
    """
    memory, clock = Section("Memory"), Section("Time")
    _decoded(memory, experiment, images)
    if images.domains is None or len(networks) < len(experiment.networks):
        for section in (memory, clock):
            section.warn("the stages are not measured before the problems above are mended")
        yield from (memory, clock)
        return
    device = torch.device("cuda" if _uses_cuda(experiment) else "cpu")
    found: dict[str, StageCost] = {}
    for name in experiment.stages:
        try:
            found[name] = measure_stage(name, experiment, dict(networks), images.domains, device)
        except SpiritsegError as error:
            memory.problem(f"stage {name} does not run: {error}")
        except (RuntimeError, MemoryError) as error:
            reason = (str(error) or repr(error)).splitlines()[0]
            memory.problem(
                f"stage {name} does not run: {reason}",
                f"--stages.{name}.batch_size {max(1, experiment.stages[name].batch_size // 2)}, "
                "or a smaller --input.crop",
            )
    _memory(memory, experiment, found)
    yield memory
    _time(clock, experiment, networks, images.domains, found, device)
    yield clock


def steps_of(stage: Stage, epoch: int) -> int:
    """Return the steps of a stage when it runs to its bound.

    Args:
        stage: its max_steps, max_epochs and batch_size are read.
        epoch: images an epoch.
    """
    by_epochs = stage.max_epochs * max(1, epoch // stage.batch_size)
    bounds = [n for n in (stage.max_steps, by_epochs) if n > 0]
    return min(bounds) if bounds else 0


def kept_share(stage: Stage, cost: StageCost) -> float:
    """Return the share of a stage's different views whose frozen outputs fit its cache."""
    wanted = _different(stage, cost) * cost.kept
    return min(1.0, stage.cache_mib * _MIB / wanted) if wanted else 0.0


def misses(stage: Stage, cost: StageCost) -> int:
    """Return how many images of a stage have their frozen outputs computed."""
    shown = steps_of(stage, cost.epoch) * stage.batch_size
    if not stage.views:
        return shown
    different = _different(stage, cost)
    kept = round(different * kept_share(stage, cost))
    # What is kept is computed once; what does not fit, each time that it comes.
    return kept + round((shown - kept) * (1 - kept / different)) if different else shown


def _different(stage: Stage, cost: StageCost) -> int:
    shown = steps_of(stage, cost.epoch) * stage.batch_size
    return min(shown, stage.views * sum(cost.images))


def pairwise_memory(
    config: Pairwise, student: tuple[int, ...], teacher: tuple[int, ...]
) -> tuple[int, str, int]:
    """Estimate what the pair-wise loss holds for its backward pass.

    Args:
        config: of the loss.
        student: (B, C, h, w) of the student's features.
        teacher: (B, C', h', w').

    Returns:
        N, the number of nodes; the form it takes; bytes of float32 over the batch: a matrix of
        differences of an image, N x N or N x alpha (direct), or the products C x C, C x C' and
        C' x C' (linear).
    """
    rows, columns = teacher[2:]
    kernel = node_kernel(config.node_size, (rows, columns))
    nodes = -(-rows // kernel[0]) * -(-columns // kernel[1])
    batch, s, t = student[0], student[1], teacher[1]
    if config.connection_range and config.connection_range < nodes:
        return nodes, "direct", 4 * batch * nodes * (nodes + 2 * config.connection_range)
    form = config.form if config.form != "auto" else cheaper_form(nodes, s, t)
    values = nodes * nodes if form == "direct" else s * s + s * t + t * t
    return nodes, form, 4 * batch * values


def _decoded(section: Section, experiment: Experiment, images: Images) -> None:
    budget = experiment.input.cache_mib
    said = f"all images decoded: {_mib(images.nbytes)} of {budget} MiB (input.cache_mib)"
    if images.nbytes <= budget * _MIB:
        section.ok(said)
    else:
        need = -(-images.nbytes // _MIB)
        section.warn(
            f"{said}: what does not fit is decoded again each time",
            f"--input.cache_mib {need} if the machine has it, or trainer.workers above 0",
        )


def _memory(section: Section, experiment: Experiment, found: Mapping[str, StageCost]) -> None:
    table: Table = [["stage", "backward", "weights", "kept / cache_mib", "pair-wise"]]
    for name, cost in found.items():
        stage = experiment.stages[name]
        pair = _pairs(stage, cost)
        table.append(
            [name, _mib(cost.saved), _mib(cost.weights), _kept(stage, cost), " ".join(pair) or "-"]
        )
        wanted = _different(stage, cost) * cost.kept
        if stage.views and cost.kept and kept_share(stage, cost) < 1:
            section.warn(
                f"stage {name} keeps frozen outputs of {100 * kept_share(stage, cost):.0f} % of "
                f"its views ({_mib(wanted)}, cache_mib {stage.cache_mib}); the rest is computed "
                "again",
                f"--stages.{name}.cache_mib {-(-wanted // _MIB)}, or fewer views (now "
                f"{stage.views})",
            )
    if found:
        title = "kept for backward; weights, gradients and optimizer; kept outputs of frozen parts"
        section.tables[title] = table
        most = max(found, key=lambda name: found[name].saved + found[name].weights)
        total = found[most].saved + found[most].weights
        free = _free_bytes(experiment)
        said = f"the largest step is that of {most}: about {_mib(total)}"
        if free and total > 0.9 * free:
            section.warn(
                f"{said}, {_mib(free)} are free",
                f"--stages.{most}.batch_size {max(1, experiment.stages[most].batch_size // 2)}",
            )
        else:
            section.ok(f"{said}{f', {_mib(free)} are free' if free else ''}")


def _pairs(stage: Stage, cost: StageCost) -> list[str]:
    config = stage.losses.pairwise
    if config is None:
        return []
    said = []
    for ours, theirs in layer_pairs(config).items():
        nodes, form, nbytes = pairwise_memory(config, cost.student[ours], cost.teacher[theirs])
        said.append(f"{form}, N = {nodes}: {_mib(nbytes)}")
    return said


def _kept(stage: Stage, cost: StageCost) -> str:
    if not stage.views or not cost.kept:
        return "-"
    return f"{_different(stage, cost) * cost.kept / _MIB:.0f} / {stage.cache_mib} MiB"


def _time(
    section: Section,
    experiment: Experiment,
    networks: Mapping[str, Segmenter],
    domains: Domains,
    found: Mapping[str, StageCost],
    device: torch.device,
) -> None:
    table: Table = [["stage", "steps", "ms a step", "ms frozen parts", "estimate"]]
    total = 0.0
    for name, cost in found.items():
        stage = experiment.stages[name]
        steps = steps_of(stage, cost.epoch)
        training = steps * (_loading(experiment, cost) + cost.step_s)
        training += misses(stage, cost) / stage.batch_size * (cost.fresh_s - cost.step_s)
        training += _drawing(experiment, stage, cost)
        seconds = training + _STAGE_S + _around(experiment, networks, domains, name, device)
        total += seconds
        step_ms = 1000 * (_loading(experiment, cost) + cost.step_s)
        fresh = f"+{1000 * (cost.fresh_s - cost.step_s):.0f}" if stage.views else "every step"
        table.append([name, str(steps), f"{step_ms:.0f}", fresh, _span(seconds)])
    count, each = _decoding(experiment, domains)
    total += count * each
    row = [str(count), f"{1000 * each:.0f}", "", _span(count * each)]
    table.append(["(decoding the images)", *row])
    result = networks[experiment.result]
    if _segments(result):
        each = _evaluation_s(result, domains, device)
        images = len(domains.target.test) + len(domains.target.val)
        seconds = each * images + (_LATENCY_S if experiment.evaluation.latency else 0)
        total += seconds
        table.append(
            ["(measuring the result)", str(images), f"{1000 * each:.0f}", "", _span(seconds)]
        )
    section.tables["estimated time, from a few real steps"] = table
    stops = [n for n, s in experiment.stages.items() if s.patience]
    early = f"; {', '.join(stops)} may stop earlier (patience)" if stops else ""
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    missing = [n for n in experiment.stages if n not in found]
    if missing:
        section.warn(f"stages that could not be measured: {', '.join(missing)}")
    section.ok(
        f"the run takes about {_span(total)} on this machine ({device.type}{threads}){early}"
    )
    if experiment.trainer.compile:
        section.ok("trainer.compile is on: compiling comes on top, the steps may be faster")


def _loading(experiment: Experiment, cost: StageCost) -> float:
    """Return the seconds that a step waits for its images."""
    workers = experiment.trainer.workers
    return cost.load_s if not workers else max(0.0, cost.load_s / workers - cost.step_s)


def _drawing(experiment: Experiment, stage: Stage, cost: StageCost) -> float:
    """Return the seconds that the views which a stage keeps take beyond loading, each once."""
    if not stage.views:
        return 0.0  # each step draws its own
    batches = _different(stage, cost) / stage.batch_size
    return batches * (cost.draw_s - cost.load_s) / max(1, experiment.trainer.workers)


def _decoding(experiment: Experiment, domains: Domains) -> tuple[int, float]:
    """Return how many images a run decodes once, and the mean seconds of one."""
    target = domains.target
    times = [
        (len(images), _decode_s(LabelledImages(images.items[:_DECODED], images.classes)))
        for images in (target.train, target.val, target.test)
    ]
    if any(stage.images != "target" or stage.fourier for stage in experiment.stages.values()):
        for other in domains.proximity:
            first = UnlabelledImages(other.items[:_DECODED], other.crop)
            times.append((len(other), _decode_s(first)))
    count = sum(number for number, _ in times)
    return count, sum(number * seconds for number, seconds in times) / max(1, count)


def _decode_s(images: LabelledImages | UnlabelledImages) -> float:
    """Time the decoding, or the rendering, of images that no memory holds yet."""
    started = time.perf_counter()
    for row in range(len(images)):
        images[row]
    return (time.perf_counter() - started) / max(1, len(images))


@torch.no_grad()  # not inference mode: what it moves to a device can never train again
def _around(
    experiment: Experiment,
    networks: Mapping[str, Segmenter],
    domains: Domains,
    name: str,
    device: torch.device,
) -> float:
    """Estimate what a stage does beside training: statistics, explained variance, validation."""
    stage = experiment.stages[name]
    network, seconds = networks[stage.network], 0.0
    if stage.losses.mimicry is not None and stage.teacher is not None:
        teacher = _pass_s(networks[stage.teacher].extractor, domains, device)
        student = _pass_s(network.extractor, domains, device)
        held_out = sum(min(_HELD_OUT, len(data)) for data in domains.held_out().values())
        seconds += held_out * (teacher + student)
        if stage.losses.mimicry.normalise:
            seconds += teacher * sum(len(d) for d in domains.train(stage) if d is not None)
    losses = stage.losses
    if losses.cross_entropy or losses.pixelwise or losses.holistic:  # they need logits
        seconds += _evaluation_s(network, domains, device) * len(domains.target.val)
    return seconds


def _segments(network: Segmenter) -> bool:
    """Whether a network gives logits: a whole network does without a head apart from it."""
    return network.head is not None or type(network).forward is not Segmenter.forward


@torch.no_grad()  # not inference mode: what it moves to a device can never train again
def _evaluation_s(network: Segmenter, domains: Domains, device: torch.device) -> float:
    """Time the evaluation of one whole image: load, segment, compare on the labels' grid."""
    data = domains.evaluation("test")
    network.to(device).eval()
    times = []
    for row in range(min(3, len(data))):
        started = time.perf_counter()
        sample = data[row]
        label_maps(network(sample["image"][None].to(device)), sample["labels"][None].to(device))
        times.append(time.perf_counter() - started)
    return min(times)


def _pass_s(module: torch.nn.Module, domains: Domains, device: torch.device) -> float:
    image = domains.evaluation("test")[0]["image"][None].to(device)
    module.to(device).eval()
    times = []
    for _ in range(2):
        started = time.perf_counter()
        module(image)
        times.append(time.perf_counter() - started)
    return min(times)


def _uses_cuda(experiment: Experiment) -> bool:
    wanted = experiment.trainer.accelerator
    return wanted in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def _free_bytes(experiment: Experiment) -> int:
    if _uses_cuda(experiment):
        return int(torch.cuda.mem_get_info()[0])
    try:
        fields = dict(x.split(":", 1) for x in Path("/proc/meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 0


def _mib(nbytes: float) -> str:
    mib = nbytes / _MIB
    return f"{mib:.1f} MiB" if mib < 100 else f"{mib:.0f} MiB"


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
