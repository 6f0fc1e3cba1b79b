"""What a network makes of cast shadows that it never saw labelled (Appendix B, as an experiment).

    python benchmarks/shadows.py --seeds 0 1 2 --out runs/shadows
    python benchmarks/shadows.py --seeds 0 1 2 --out runs/shadows --report-only

S, SD and ESD are trained as in the demo: labelled scenes without cast shadows, unlabelled ones
with them. Each test scene is then rendered twice, with and without its shadows; everything else
in it stays. Accuracy is taken over the pixels on which a shadow lies, with the shadow and
without it, and over all other pixels. A finished run is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from pathlib import Path

import numpy as np
import numpy.typing as npt

import spiritseg
from spiritseg.data.class_map import IGNORED
from spiritseg.data.domains import open_domains
from spiritseg.data.items import ScenePair
from spiritseg.recipes import load_experiment
from spiritseg.scenes import render
from spiritseg.student import Student
from spiritseg.tables import Table, markdown

NAMES = ("S", "SD", "ESD")
# What is counted: where, and whether the shadow is there.
PLACES = ("in shadow", "the same, shadow off", "elsewhere", "elsewhere, shadow off")
Counts = npt.NDArray[np.int64]  # (places, K, K): truth by prediction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/shadows"))
    parser.add_argument("--report", type=Path, help="write the table here")
    parser.add_argument("--report-only", action="store_true", help="run nothing")
    options = parser.parse_args()
    if not options.report_only:
        for seed in options.seeds:
            spiritseg.demo(options.out / f"seed-{seed}", seed)
    text = markdown(tabulate(options.out, options.seeds))
    print(text)
    if options.report:
        options.report.write_text(f"{text}\n")


def tabulate(out: Path, seeds: list[int]) -> Table:
    heads = [f"{kind} % {place}" for kind in ("accuracy", "road IoU") for place in PLACES]
    table: Table = [["network", "seeds", *heads]]
    for name in NAMES:
        found = [figures(count(spiritseg.load(out / f"seed-{seed}" / name))) for seed in seeds]
        columns = zip(*found, strict=True)
        table.append([name, str(len(seeds)), *map(spread, columns)])
    return table


def count(student: Student) -> Counts:
    """Count truth by prediction on the test scenes, by place."""
    classes = len(student.classes)
    total = np.zeros((len(PLACES), classes, classes), np.int64)
    domains = open_domains(load_experiment("demo"), target_only=True)
    for index, item in enumerate(domains.test.items):
        assert isinstance(item, ScenePair), "the demo's test images are scenes"
        dark = render(item.seed, item.index, item.size, item.style)
        bright_style = dataclasses.replace(item.style, shadows=False)
        bright = render(item.seed, item.index, item.size, bright_style)
        truth = domains.test[index][1].numpy()
        with_shadow, without = student(dark.image), student(bright.image)
        for place, (where, found) in enumerate(
            (
                (dark.shadow, with_shadow),
                (dark.shadow, without),
                (~dark.shadow, with_shadow),
                (~dark.shadow, without),
            )
        ):
            kept = where & (truth != IGNORED)
            pairs = truth[kept].astype(np.int64) * classes + found[kept]
            total[place] += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    return total


def figures(counts: Counts) -> list[float]:
    """Return the accuracy, then road's IoU, of each place, in per cent."""
    accuracy = [100 * np.trace(one) / one.sum() for one in counts]
    road = [100 * one[1, 1] / (one[1].sum() + one[:, 1].sum() - one[1, 1]) for one in counts]
    return [float(value) for value in (*accuracy, *road)]


def spread(values: tuple[float, ...]) -> str:
    mean = statistics.mean(values)
    return f"{mean:.1f} ± {statistics.stdev(values):.1f}" if len(values) > 1 else f"{mean:.1f}"


if __name__ == "__main__":
    main()
