"""The pair-wise loss in its linear form against the N x N form, forward and backward.

    python benchmarks/pairwise.py
    python benchmarks/pairwise.py --channels 128 512 --rounds 9

One image, float32, one thread. The N x N form is ``pairwise(form="direct")``: two products of
features, their difference squared, differentiated by autograd. Both forms run turn by turn in one
process; seconds are the median of the process's CPU time, which other programs disturb
less than wall time. Memory is the peak of the resident size above what the inputs took,
each case in a process of its own (Linux: VmHWM, reset before the step; elsewhere ru_maxrss).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from spiritseg.losses import pairwise
from spiritseg.tables import Table, markdown

Channels = tuple[int, int]
Grid = tuple[int, int]

LARGEST_DIRECT = 64 * 128  # nodes; beyond it the N x N form would take gigabytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--channels",
        type=int,
        nargs=2,
        action="append",
        help="student's and teacher's, may be repeated; default: 128 512 and 512 2048",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure:
        form, *numbers = options.measure
        cs, ct, h, w = map(int, numbers)
        print(peak_of_step(form, (cs, ct), (h, w)))
        return
    pairs: list[Channels] = [(s, t) for s, t in options.channels or [(128, 512), (512, 2048)]]
    grids = [(16, 32), (32, 64), (64, 128), (128, 256)]
    print(f"torch {torch.__version__}, one thread, median of {options.rounds} rounds\n")
    head = ["channels", "nodes", "linear s", "N x N s", "times faster"]
    table: Table = [[*head, "linear MiB", "N x N MiB", "times less memory"]]
    for channels in pairs:
        for grid in grids:
            table.append(compare(channels, grid, options.rounds))
            print(table[-1], flush=True)
    print("\n" + markdown(table))


def compare(channels: Channels, grid: Grid, rounds: int) -> list[str]:
    both = grid[0] * grid[1] <= LARGEST_DIRECT
    forms = ["linear", "direct"] if both else ["linear"]
    seconds = median_seconds([step(form, channels, grid) for form in forms], rounds)
    memory = [peak_mib(form, channels, grid) for form in forms]
    name = f"{channels[0]} / {channels[1]}"
    nodes = f"{grid[0]}x{grid[1]} = {grid[0] * grid[1]}"
    if not both:
        return [name, nodes, f"{seconds[0]:.3f}", "-", "-", f"{memory[0]:.0f}", "-", "-"]
    return [
        name,
        nodes,
        *(f"{s:.3f}" for s in seconds),
        f"{seconds[1] / seconds[0]:.1f}",
        *(f"{m:.0f}" for m in memory),
        f"{memory[1] / memory[0]:.1f}",
    ]


def step(form: str, channels: Channels, grid: Grid) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1, c, *grid, generator=generator) for c in channels)
    student.requires_grad_()

    def work() -> None:
        student.grad = None
        torch.autograd.backward(pairwise(student, teacher, form=form))  # type: ignore[arg-type]

    return work


def median_seconds(works: list[Callable[[], None]], rounds: int) -> list[float]:
    times: list[list[float]] = [[] for _ in works]
    for work in works:
        work()  # warm-up
    for _ in range(rounds):
        for work, taken in zip(works, times, strict=True):
            start = time.process_time()
            work()
            taken.append(time.process_time() - start)
    return [statistics.median(taken) for taken in times]


def peak_mib(form: str, channels: Channels, grid: Grid) -> float:
    """The same step in a process of its own."""
    words = [form, *map(str, (*channels, *grid))]
    command = [sys.executable, __file__, "--measure", *words]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_of_step(form: str, channels: Channels, grid: Grid) -> float:
    """MiB above what is resident once the libraries are loaded and the inputs made."""
    step(form, channels, (2, 2))()
    work = step(form, channels, grid)
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")  # the peak starts from here
        before = resident_kib("VmRSS")
        work()
        return (resident_kib("VmHWM") - before) / 1024
    import resource  # not on every system

    unit = 2**20 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit


def resident_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main()
