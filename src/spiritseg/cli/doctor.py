"""spiritseg doctor."""

from __future__ import annotations

from spiritseg.cli.words import FIELDS, make_parser, read_words


def run(words: list[str]) -> None:
    """Examine a recipe, its images and its networks before any training.

    Takes the fields that distill takes. Examines weights, normalisation, cut points, labels and
    crops; a few real steps of each stage measure memory and time. Exits with 2 where something
    must be mended.
    """
    parser = make_parser("doctor", run)
    parser.epilog = FIELDS
    parser.add_argument("recipe", help="a shipped recipe or a .yaml file")
    parser.add_argument("--skip-bad", action="store_true", help="leave unreadable images out")
    options, overrides = read_words(parser, words)
    from spiritseg.doctor import doctor
    from spiritseg.errors import ConfigError

    report = doctor(
        options.recipe,
        overrides,
        skip_bad=options.skip_bad,
        show=lambda examination: print(examination, end="\n\n", flush=True),
    )
    if report.problems:
        raise ConfigError(
            f"{report.summary}; mend the problems before spiritseg distill {options.recipe}"
        )
    print(f"{report.summary}; next: spiritseg distill {options.recipe}")
