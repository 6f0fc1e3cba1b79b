"""spiritseg bench."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from spiritseg.cli.words import make_parser

if TYPE_CHECKING:
    from spiritseg.deploy.bench import BenchRow

_MORE = """
Every row is measured in turn, in one run, beside the machine's float32 matrix product:
"network" is the network alone, "image to mask" has the max-pool, the normalisation and the
argmax in it, and "of peak" is the network's rate as a share of the product's.

The whole table is about 180 characters wide. A narrower terminal gets a table for each
student, with what fits; a file or a pipe gets the whole one as Markdown.

  spiritseg bench runs/esd runs/ct --size 512 1024 --precisions fp32 int8
  spiritseg bench runs/esd > speed.md
"""


def run(words: list[str]) -> None:
    """Measure students in every engine and precision: one table, one run."""
    parser = make_parser("bench", run)
    parser.epilog = _MORE
    # What is not given is the function's own default.
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument("students", nargs="+", metavar="STUDENT", help="runs, bundles or exports")
    parser.add_argument(
        "--size",
        dest="sizes",
        type=int,
        nargs=2,
        action="append",
        metavar=("H", "W"),
        help="of the images; may be given several times (default: 512 1024)",
    )
    parser.add_argument(
        "--runtimes", nargs="+", help="torch onnxruntime openvino; default: those installed"
    )
    parser.add_argument("--precisions", nargs="+", help="fp32 (default) fp16 int8")
    parser.add_argument("--threads", type=int, help="of the networks; default: all")
    parser.add_argument("--rounds", type=int, help="passes of each on the clock (default: 15)")
    parser.add_argument(
        "--markdown", action="store_true", default=False, help="print the table as Markdown"
    )
    parser.add_argument("--trust", action="store_true", help="a .pt2, or a bundle's own classes")
    options = vars(parser.parse_args(words))
    as_markdown = options.pop("markdown")
    if "sizes" in options:
        options["sizes"] = [(height, width) for height, width in options["sizes"]]
    from spiritseg.deploy.bench import bench
    from spiritseg.deploy.timing import int8_instructions

    rows = bench(report=_say, **options)
    _show(rows, as_markdown or not sys.stdout.isatty())
    print()
    for size, peak in {row.size: row.peak for row in rows}.items():
        at = f"{size[0]} x {size[1]}"
        print(f"matrix product beside {at}: {peak:.0f} GFLOP/s, float32, the fastest")
    if any(row.precision == "int8" for row in rows):
        found = int8_instructions()
        print(f"8-bit instructions: {', '.join(found) or 'none known: int8 may not be faster'}")


def _say(line: str) -> None:
    print(line, file=sys.stderr)  # a table that goes to a file stays a table


def _show(rows: Sequence[BenchRow], as_markdown: bool) -> None:
    from rich.console import Console

    from spiritseg.deploy.bench_tables import (
        aligned_markdown,
        bench_table,
        drawn_width,
        narrow_text,
    )
    from spiritseg.tables import print_table

    table = bench_table(rows)
    width = Console().width
    if as_markdown:
        print(aligned_markdown(table))
    elif drawn_width(table) <= width:
        print_table(table)
    else:
        print(narrow_text(rows, width))
