"""A training step of each stage against its own FLOPs at the machine's matrix-product rate.

    python benchmarks/train_step.py                      # the Table II student, 256x256, batch 2
    python benchmarks/train_step.py --recipe sd --batch 8 --size 128 128
    python benchmarks/train_step.py --compile

Every figure is taken in one run; the last column is what a step costs above a machine that did
nothing but its multiplications. Loading is the time of drawing, decoding (from memory) and
augmenting the step's images, with no worker to hide it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from spiritseg.models import Segmenter
from spiritseg.models.build import build_networks
from spiritseg.recipes import load_experiment
from spiritseg.tables import Table, markdown
from spiritseg.training.optim import build_optimizer
from spiritseg.training.stage import StageModule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="paper-sd")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256), help="network input, H W")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--formats", nargs="+", default=["contiguous", "channels_last"])
    options = parser.parse_args()
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
    overrides = {
        f"networks.{n}.extractor.weights": "random"
        for n in load_experiment(options.recipe, complete=False).networks
    }
    experiment = load_experiment(options.recipe, overrides, complete=False)
    networks = build_networks(experiment.networks, 2, seed=0)
    stage = experiment.stages[name]
    teacher = networks[stage.teacher] if stage.teacher else None
    channels = getattr(teacher.extractor, "channels", 0) if teacher else 0
    ones = (torch.zeros(channels), torch.ones(channels))
    module = StageModule(name, stage, networks[stage.network], teacher, ones, 0, channels_last)
    module.setup("fit")
    module.train()
    optimizer = build_optimizer(stage.optimizer, module.trained_parameters())
    batch = fake_batch(options.batch, tuple(options.size))

    def step() -> None:
        outputs = module.outputs(batch)
        total = torch.stack([t.weight * t.compute(outputs) for t in module.terms.values()]).sum()
        optimizer.zero_grad()
        torch.autograd.backward(total)
        optimizer.step()

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


def fake_batch(count: int, size: tuple[int, ...]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (count, *size), generator=generator)
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
