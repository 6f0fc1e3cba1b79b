"""spiritseg report."""

from __future__ import annotations

from spiritseg.cli.words import make_parser, read_words


def run(words: list[str]) -> None:
    """Write report.html, results.json and results.csv from finished runs.

    Fields to open the images with can be set, such as --target.root DIR.
    """
    parser = make_parser("report", run)
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="folders of runs, at any depth")
    parser.add_argument("--out", help="folder of the report; by default the first of RUNS")
    parser.add_argument("--baseline", default="baseline", help="recipe to compare with")
    parser.add_argument(
        "--no-latency",
        dest="latency",
        action="store_false",
        help="do not measure latency",
    )
    parser.add_argument("--trust", action="store_true", help="import the students' own classes")
    options, overrides = read_words(parser, words)
    from spiritseg.compare import report

    print(f"report: {report(**vars(options), overrides=overrides).page}")
