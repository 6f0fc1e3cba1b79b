"""spiritseg demo."""

from __future__ import annotations

from spiritseg.cli.words import make_parser


def run(words: list[str]) -> None:
    """Run S, SD and ESD on the embedded scenes; print a table, draw a picture."""
    parser = make_parser("demo", run)
    parser.add_argument(
        "--out", default="demo", help="folder of the runs and the picture; by default demo"
    )
    parser.add_argument("--seed", type=int, default=0, help="of every draw; by default 0")
    options = parser.parse_args(words)
    from spiritseg.demo import demo

    demo(options.out, options.seed)
