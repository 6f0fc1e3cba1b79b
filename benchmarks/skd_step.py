"""What pixel-wise and pair-wise losses add to the student's step and the teacher's forward pass.

    python benchmarks/skd_step.py                                    # skd-pixel-pair, 128x128
    python benchmarks/skd_step.py --size 256 256 --batch 2 \
        --recipes benchmarks/skd/skd-paper-pixel-pair.yaml

In one run, in turn, by the process's clock on one thread: (a) the student's step under
cross-entropy alone, (b) the teacher's forward pass, (c) the step with the distillation losses;
the last column is (c) / ((a) + (b)).
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from train_step import fake_batch, stepper, with_random_weights

from spiritseg.losses import CrossEntropy
from spiritseg.tables import Table, markdown
from spiritseg.training.allocator import freed_memory_kept

SKD = Path(__file__).parent / "skd"


@freed_memory_kept()  # as in a run
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    recipes = [f"{SKD}/skd-pixel.yaml", f"{SKD}/skd-pixel-pair.yaml"]
    parser.add_argument("--recipes", nargs="+", default=recipes)
    parser.add_argument("--size", type=int, nargs=2, default=(128, 128), help="network input, H W")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table: Table = [["recipe", "student ms", "teacher ms", "stage ms", "stage / (both)"]]
    for recipe in options.recipes:
        table.append([recipe, *measure(options, recipe)])
        print(table[-1], flush=True)
    print("\n" + markdown(table))


def measure(options: argparse.Namespace, recipe: str) -> list[str]:
    """Time the three in turn, so that all meet the same machine; return their medians."""
    experiment = with_random_weights(recipe)
    (name, stage), *_ = experiment.stages.items()
    alone = dataclasses.replace(stage, losses={"cross_entropy": CrossEntropy()})
    batch = fake_batch(options.batch, tuple(options.size), options.classes)
    module, step = stepper(experiment, name, num_classes=options.classes)
    teacher = module.teacher
    assert teacher is not None, f"{recipe} has no teacher"
    teacher.eval()
    plain = dataclasses.replace(experiment, stages={name: alone})
    _, alone_step = stepper(plain, name, num_classes=options.classes)
    images = batch["image"].contiguous(memory_format=torch.channels_last)

    def teach() -> None:
        with torch.no_grad():
            teacher.outputs(images, module.teacher_needs)

    work: list[Callable[[], None]] = [lambda: alone_step(batch), teach, lambda: step(batch)]
    times: list[list[float]] = [[], [], []]
    for number in range(options.rounds + 1):
        for found, run in zip(times, work, strict=True):
            start = time.process_time()
            run()
            if number:  # the first round warms up
                found.append(time.process_time() - start)
    student, taught, both = (statistics.median(t) for t in times)
    figures = [f"{1000 * s:.0f}" for s in (student, taught, both)]
    return [*figures, f"{both / (student + taught):.3f}"]


if __name__ == "__main__":
    main()
