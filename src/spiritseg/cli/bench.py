"""spiritseg bench."""

from __future__ import annotations

from spiritseg.cli.words import make_parser

_MORE = """
Every row is measured in turn, in one run, beside the machine's float32 matrix product:
"network" is the network alone, "image to mask" has the max-pool, the normalisation and the
argmax in it, and "of peak" is the network's rate as a share of the product's.

  spiritseg bench runs/esd runs/ct --size 512 1024 --precisions fp32 int8
"""


def run(words: list[str]) -> None:
    """Measure students in every engine and precision: one table, one run."""
    parser = make_parser("bench", run)
    parser.epilog = _MORE
    parser.add_argument("students", nargs="+", metavar="STUDENT", help="runs, bundles or exports")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        action="append",
        metavar=("H", "W"),
        help="of the images; may be given several times (default: 512 1024)",
    )
    parser.add_argument(
        "--runtimes", nargs="+", default=["torch", "onnxruntime"], help="torch onnxruntime openvino"
    )
    parser.add_argument("--precisions", nargs="+", default=["fp32"], help="fp32 fp16 int8")
    parser.add_argument("--threads", type=int, help="of the networks; default: all")
    parser.add_argument("--rounds", type=int, default=15, help="passes of each on the clock")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--trust", action="store_true", help="a .pt2, or a bundle's own classes")
    options = parser.parse_args(words)
    from spiritseg.deploy.bench import bench, bench_table, int8_instructions
    from spiritseg.tables import markdown, print_table

    rows = bench(
        options.students,
        [(height, width) for height, width in options.size or [(512, 1024)]],
        options.runtimes,
        options.precisions,
        threads=options.threads,
        rounds=options.rounds,
        trust=options.trust,
    )
    table = bench_table(rows)
    if options.markdown:
        print(markdown(table))
    else:
        print_table(table)
    print(f"matrix product: {rows[0].peak:.0f} GFLOP/s, float32, the fastest of the run")
    if "int8" in options.precisions:
        found = int8_instructions()
        print(f"8-bit instructions: {', '.join(found) or 'none known: int8 may not be faster'}")
