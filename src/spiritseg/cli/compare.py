"""spiritseg compare."""

from __future__ import annotations

from spiritseg.cli.words import make_parser, read_words


def run(words: list[str]) -> None:
    """Run recipes x ratios x label counts x seeds; the same command continues.

    Each run has a folder of its own below --out; spiritseg report writes them up. Any field can
    be set for all recipes, such as --target.root DIR; a field of a stage or a network goes to
    the recipes that have it, and one that begins with a recipe's name to that recipe alone,
    such as --skd.networks.teacher.bundle DIR.
    """
    parser = make_parser("compare", run)
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="shipped names or .yaml files")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds 0 to N - 1")
    parser.add_argument(
        "--ratios", type=float, nargs="+", metavar="R", help="target : proximity; 0: proximity only"
    )
    parser.add_argument("--labels", nargs="+", metavar="N", help="labelled images: 16 32 64 all")
    parser.add_argument("--out", default="runs/compare", help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once on this machine")
    parser.add_argument("--address", help="a Ray cluster: auto, local or HOST:PORT")
    parser.add_argument("--cpus-per-run", type=float, default=1, help="of a Ray task")
    parser.add_argument("--gpus-per-run", type=float, default=0, help="of a Ray task")
    parser.add_argument("--skip-bad", action="store_true", help="leave unreadable images out")
    options, overrides = read_words(parser, words)
    from spiritseg.compare import compare

    compare(**vars(options), overrides=overrides)
    print(f"next: spiritseg report {options.out}")
