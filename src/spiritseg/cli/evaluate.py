"""spiritseg evaluate."""

from __future__ import annotations

from spiritseg.cli.words import make_parser, read_words


def run(words: list[str]) -> None:
    """Measure a run's student, or a bundle, on labelled images.

    Fields of its experiment can be set as in distill, such as --target.root DIR.
    """
    parser = make_parser("evaluate", run)
    parser.add_argument("run", help="a run's folder, or a bundle")
    parser.add_argument("--split", choices=("test", "val"), default="test")
    parser.add_argument("--skip-bad", action="store_true", help="leave unreadable images out")
    parser.add_argument("--trust", action="store_true", help="import the bundle's own classes")
    options, overrides = read_words(parser, words)
    from spiritseg.tables import class_table, print_notes, print_table
    from spiritseg.training.evaluate import evaluate
    from spiritseg.training.run_folder import is_first_process

    scores = evaluate(**vars(options), overrides=overrides)
    if not is_first_process():
        return
    print_table(class_table(scores))
    print_notes(scores)
