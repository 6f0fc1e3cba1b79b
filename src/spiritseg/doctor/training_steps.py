"""Memory and time of a run on this machine, from a few real training steps of each stage."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from spiritseg.config import Stage
from spiritseg.data.domains import Domains
from spiritseg.doctor.findings import Examination, reason
from spiritseg.doctor.known import Known
from spiritseg.doctor.stage_cost import MIB, StageCost, extrapolated, few, measure_stage
from spiritseg.doctor.system_memory import free_bytes
from spiritseg.errors import SpiritsegError
from spiritseg.evaluation.cost import ROUNDS, WARM_UP
from spiritseg.training.allocator import freed_memory_kept
from spiritseg.training.measure import score
from spiritseg.training.trainer import lightning_trainer

__all__ = ["examine_training"]

_STAGE_S = 3.0  # Lightning's start and end of a stage, with its loggers and checkpoints
_TABLE = "a few real steps of each stage, extrapolated"


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
            result_s = _result_seconds(known, known.domains)
            _report_time(found, known, costs, result_s, device)
            _report_memory(found, known, costs, device)


def _check_decoded(found: Examination, known: Known) -> None:
    budget = known.experiment.input.cache_mib
    need = -(-known.nbytes // MIB)
    what = f"all images decoded take {need} of {budget} MiB"
    if known.images_fit:
        found.ok("input.cache_mib", what)
    else:
        found.warn(
            "input.cache_mib",
            f"{what}; what does not fit is decoded again each time",
            f"--input.cache_mib {need} if the machine has it, or trainer.workers above 0",
        )


def _result_seconds(known: Known, domains: Domains) -> float:
    """Return the seconds to measure the result: the test images, and its latency."""
    network, classes = known.networks[known.experiment.result], list(known.classes)
    latency = WARM_UP + ROUNDS if known.experiment.evaluation.latency else 0
    _, seconds = extrapolated(
        lambda n: score(network, few(domains, n).evaluation("test"), classes, known.dry),
        lambda _: len(domains.target.test) + latency,
    )
    return seconds


def _report_time(
    found: Examination,
    known: Known,
    costs: Mapping[str, StageCost],
    result_s: float,
    device: torch.device,
) -> None:
    given = known.experiment
    head = ["stage", "steps", "ms to load", "ms a step", "ms a new step", "time", "peak MiB"]
    table = [[*head, *(["GPU MiB"] if device.type == "cuda" else [])]]
    total = known.read_s + result_s
    for name, cost in costs.items():
        seconds = _STAGE_S + cost.around_s + cost.training_s(given.trainer.workers)
        total += seconds
        times = (cost.load_s, cost.again_s, cost.fresh_s)
        row = [name, str(cost.steps), *(f"{1000 * one:.0f}" for one in times), _span(seconds)]
        row.append(f"{cost.host / MIB:.0f}")
        table.append(row + ([f"{cost.gpu / MIB:.0f}"] if device.type == "cuda" else []))
    blank = [""] * (len(table[0]) - 6)
    table.append(["(reading the images)", "", "", "", "", _span(known.read_s), *blank])
    table.append(["(measuring the result)", "", "", "", "", _span(result_s), *blank])
    found.tables[_TABLE] = table
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    stops = [name for name, stage in given.stages.items() if stage.patience]
    early = f"; {', '.join(stops)} may stop earlier (patience)" if stops else ""
    part = "the measured stages take" if len(costs) < len(given.stages) else "the run takes"
    found.ok("time", f"{part} about {_span(total)} on this machine ({device.type}{threads}){early}")
    if given.trainer.compile:
        found.ok("trainer.compile", "compiling takes extra time; the steps may become faster")


def _report_memory(
    found: Examination, known: Known, costs: Mapping[str, StageCost], device: torch.device
) -> None:
    stages = known.experiment.stages
    for name, cost in costs.items():
        _check_cache(found, name, stages[name], cost)
    assert known.domains is not None, "the images are opened"
    # What is not decoded yet, or drawn, still fills the memory of the images.
    rest = min(known.domains.target.train.cache.budget.left, known.nbytes)
    largest = max(costs, key=lambda name: costs[name].host)
    need = {"memory": (largest, costs[largest].host + rest, free_bytes(torch.device("cpu")))}
    if device.type == "cuda":
        largest = max(costs, key=lambda name: costs[name].gpu)
        need["GPU memory"] = largest, costs[largest].gpu, free_bytes(device)
    for what, (name, nbytes, free) in need.items():
        text = f"stage {name} needs the most, about {nbytes / MIB:.0f} MiB"
        text += f"; {free / MIB:.0f} MiB are free" if free else ""
        if free and nbytes > 0.9 * free:
            half = max(1, stages[name].batch_size // 2)
            advice = f"--stages.{name}.batch_size {half}, or smaller caches (cache_mib)"
            found.warn(what, text, advice)
        else:
            found.ok(what, text)


def _check_cache(found: Examination, name: str, stage: Stage, cost: StageCost) -> None:
    wanted = cost.different * cost.kept
    if not wanted or cost.kept_share == 1:
        return
    found.warn(
        f"stages.{name}.cache_mib",
        f"frozen outputs of {100 * cost.kept_share:.0f} % of the views fit ({wanted / MIB:.0f} MiB "
        f"wanted, cache_mib is {stage.cache_mib}); the others are computed again each time",
        f"--stages.{name}.cache_mib {-(-wanted // MIB)}, or fewer views (now {stage.views})",
    )


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
