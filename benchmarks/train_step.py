"""A training step of each stage against its own FLOPs at the machine's matrix-product rate.

    python benchmarks/train_step.py                      # the Table II student, 256x256, batch 2
    python benchmarks/train_step.py --recipe sd --batch 8 --size 128 128
    python benchmarks/train_step.py --compile
    python benchmarks/train_step.py --recipe sd --data ../shared/data/camvid   # share of loading

Every figure is taken in one run; the last column is what a step costs above a machine that did
nothing but its multiplications. With --data, the recipe's own steps are run on real batches:
loading is the time of drawing, decoding (from memory) and augmenting a step's images, with no
worker to hide it. A stage that keeps features is faster once each view has been seen.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from spiritseg.config import Experiment
from spiritseg.data.domains import Domains, open_domains
from spiritseg.data.sampling import StageBatches, StageData
from spiritseg.losses.loss import FEATURES
from spiritseg.models import Segmenter
from spiritseg.models.ensemble import stage_teacher
from spiritseg.models.networks import build_networks
from spiritseg.recipes import load_experiment
from spiritseg.tables import Table, markdown
from spiritseg.training.allocator import freed_memory_kept
from spiritseg.training.optim import build_optimizer
from spiritseg.training.stage import StageModule


@freed_memory_kept()  # as in a run
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="paper-sd")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256), help="network input, H W")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", help="CamVid's folder: measure the share of loading instead")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--formats", nargs="+", default=["contiguous", "channels_last"])
    parser.add_argument(
        "--cpu-time", action="store_true", help="with --data: on one thread, by the process's clock"
    )
    options = parser.parse_args()
    if options.data:
        if options.cpu_time:  # what others do on the machine does not count
            torch.set_num_threads(1)
        clock = time.process_time if options.cpu_time else time.perf_counter
        print(markdown(loading_table(options.recipe, options.data, options.rounds, clock)))
        return
    rate = matrix_product_rate()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"matrix product {rate / 1e9:.0f} GFLOP/s\n"
    )
    table: Table = [["stage", "format", "GFLOPs", "limit s", "step s", "step / limit"]]
    names = list(load_experiment(options.recipe, complete=False).stages)
    for name in names:
        for memory_format in options.formats:
            table.append(measure(options, name, memory_format == "channels_last", rate))
            print(table[-1], flush=True)
    print("\n" + markdown(table))


def measure(options: argparse.Namespace, name: str, channels_last: bool, rate: float) -> list[str]:
    experiment = with_random_weights(options.recipe)
    module, step_on = stepper(experiment, name, channels_last)
    teacher = module.teacher
    batch = fake_batch(options.batch, tuple(options.size))

    def step() -> None:
        step_on(batch)

    flops = step_flops(module, teacher, batch)
    if options.compile:
        module.network.extractor.compile()
        if module.network.head is not None:
            module.network.head.compile()
    step()  # warm-up: allocations, compilation
    limit = flops / rate
    seconds = median_seconds(step, options.rounds)
    layout = "channels_last" if channels_last else "contiguous"
    return [
        name,
        layout + (", compiled" if options.compile else ""),
        f"{flops / 1e9:.1f}",
        f"{limit:.2f}",
        f"{seconds:.2f}",
        f"{seconds / limit:.2f}",
    ]


def with_random_weights(recipe: str, data: str | None = None) -> Experiment:
    """Load a recipe so that nothing is downloaded; what a step costs is the same."""
    overrides: dict[str, Any] = {
        f"networks.{name}.extractor.weights": "random"
        for name, network in load_experiment(recipe, complete=False).networks.items()
        if network.extractor.name not in ("copy", "compact", "separable")
    }
    if data is not None:
        overrides["target.root"] = data
    return load_experiment(recipe, overrides, complete=False)


def stepper(
    experiment: Experiment, name: str, channels_last: bool = True, num_classes: int = 2
) -> tuple[StageModule, Callable[[dict[str, Any]], None]]:
    """Make a stage, and what takes one training step of it on a batch."""
    networks = build_networks(experiment.networks, num_classes, seed=0)
    stage = experiment.stages[name]
    teacher = stage_teacher(stage, networks)
    channels = teacher.extractor.channels if teacher else 0
    ones = (torch.zeros(channels), torch.ones(channels))
    module = StageModule(
        name, stage, networks[stage.network], teacher, {FEATURES: ones}, 0, channels_last
    )
    module.setup("fit")
    module.train()
    optimizer = build_optimizer(stage.optimizer, module.trained_parameters())

    def step(batch: dict[str, Any]) -> None:
        outputs = module.outputs(batch)
        total, _ = module.total(outputs)
        optimizer.zero_grad()
        torch.autograd.backward(total)
        optimizer.step()

    return module, step


def loading_table(recipe: str, data: str, rounds: int, clock: Callable[[], float]) -> Table:
    """Time loading and steps in turn, batch by batch, so that both meet the same machine."""
    experiment = with_random_weights(recipe, data)
    domains = open_domains(experiment)  # decodes every image, which fills the memory
    table: Table = [["stage", "epoch", "loading ms", "step ms", "share of loading"]]
    for name, stage in experiment.stages.items():
        load_s, step_s = stage_times(experiment, domains, name, rounds, clock)
        kept = stage.num_views and (stage.trains == "head" or stage.teacher)
        for which in ("first", "kept features") if kept else ("first",):
            load, step = load_s[which], step_s[which]
            table.append(
                [
                    name,
                    which,
                    f"{load * 1e3:.1f}",
                    f"{step * 1e3:.0f}",
                    f"{load / (load + step):.1%}",
                ]
            )
    return table


def stage_times(
    experiment: Experiment, domains: Domains, name: str, rounds: int, clock: Callable[[], float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the mean seconds of loading and the median ones of a step; epoch 0, then again."""
    stage = experiment.stages[name]
    images = StageData(domains.train(stage), stage, experiment, name)
    batches = StageBatches(images, stage.batch_size)
    step = stepper(experiment, name, experiment.trainer.channels_last, len(domains.classes))[1]
    step(next(iter(DataLoader(images, batch_sampler=batches))))  # warm-up: allocations
    load_s, step_s = {}, {}
    for which in ("first", "kept features"):
        loading, stepping = [], []
        for _ in range(1 if which == "first" else rounds):
            batches.set_epoch(1)
            loader = iter(DataLoader(images, batch_sampler=batches))
            for _ in range(len(batches)):
                start = clock()
                batch = next(loader)
                loaded = clock()
                step(batch)
                loading.append(loaded - start)
                stepping.append(clock() - loaded)
        load_s[which], step_s[which] = statistics.mean(loading), statistics.median(stepping)
    return load_s, step_s


def step_flops(
    module: StageModule, teacher: Segmenter | None, batch: dict[str, torch.Tensor]
) -> int:
    """Forward once, backward twice the forward of what trains.

    The backward pass is not counted but derived: torch's counter takes the weight gradient of a
    grouped convolution for that of a dense one.
    """

    def forward(work: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            work()
        return int(counter.get_total_flops())

    total = forward(lambda: module.outputs(batch))
    frozen = forward(lambda: teacher.extractor(batch["image"])) if teacher is not None else 0
    if module.stage.trains == "head":
        frozen += forward(lambda: module.network.extractor(batch["image"]))
    return total + 2 * (total - frozen)


def fake_batch(count: int, size: tuple[int, ...], classes: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (count, *size), generator=generator)
    return {
        "image": torch.rand(count, 3, *size, generator=generator),
        "labels": labels,
        "valid": torch.ones_like(labels, dtype=torch.bool),
        "domain": torch.zeros(count, dtype=torch.int64),
        "index": torch.arange(count),
        "view": torch.zeros(count, dtype=torch.int64),
    }


def matrix_product_rate(side: int = 2048, rounds: int = 7) -> float:
    """FLOPs a second of a float32 matrix product, the fastest of several."""
    a, b = torch.rand(side, side), torch.rand(side, side)
    torch.mm(a, b)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times)


def median_seconds(work: Callable[[], None], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
