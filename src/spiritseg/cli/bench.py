"""spiritseg bench."""

from __future__ import annotations

import argparse

from spiritseg.cli.words import make_parser

_MORE = """
Every row is measured in turn, in one run, with a float32 matrix product of torch: "net ms" is the
network alone, "mask ms" is from the uint8 image to the mask, with the max-pool, the normalisation
and the argmax in it, and "peak %" is the network's rate as a share of the product's.

  spiritseg bench runs/esd runs/ct --size 512 1024 --precisions fp32 int8
  spiritseg bench runs/esd > speed.md
"""


def run(words: list[str]) -> None:
    """Measure students in every engine and precision: one table, one run."""
    parser = make_parser("bench", run)
    parser.epilog = _MORE
    parser.argument_default = argparse.SUPPRESS  # defaults are those of the function
    parser.add_argument("students", nargs="+", metavar="STUDENT", help="runs, bundles or exports")
    parser.add_argument(
        "--size",
        "--sizes",
        dest="sizes",
        type=int,
        nargs=2,
        action="append",
        metavar=("H", "W"),
        help="of the images; may be given several times (default: 512 1024)",
    )
    parser.add_argument(
        "--runtimes",
        nargs="+",
        help="torch, engines of export formats, or path/to/file.py:NAME of your own format; "
        "default: those installed",
    )
    parser.add_argument("--precisions", nargs="+", help="fp32 (default) fp16 int8")
    parser.add_argument("--threads", type=int, help="of the networks; default: all")
    parser.add_argument("--rounds", type=int, help="measured passes of each (default: 15)")
    parser.add_argument("--trust", action="store_true", help="a .pt2, or a bundle's own classes")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    options = vars(parser.parse_args(words))
    if "sizes" in options:
        options["sizes"] = [(height, width) for height, width in options["sizes"]]
    from spiritseg.bench import bench

    print(bench(**options))
