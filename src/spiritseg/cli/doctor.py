"""spiritseg doctor."""

from __future__ import annotations

from spiritseg.cli.words import FIELDS, make_parser, read_words


def run(words: list[str]) -> None:
    """Look at a recipe, its images and its networks before any training; say what is wrong.

    Takes what distill takes. Weights, normalisation, split points, labels, crops, and from a few
    real steps memory and time. Exits with 2 where something must be mended.
    """
    parser = make_parser("doctor", run)
    parser.epilog = FIELDS
    parser.add_argument("recipe", help="a shipped recipe or a .yaml file")
    parser.add_argument("--skip-bad", action="store_true", help="leave unreadable images out")
    options, overrides = read_words(parser, words)
    if options.skip_bad:
        overrides["input.skip_bad"] = True
    from spiritseg.diagnosis import Report, examine
    from spiritseg.errors import ConfigError
    from spiritseg.recipes import load_experiment
    from spiritseg.tables import print_table

    sections = []
    for section in examine(load_experiment(options.recipe, overrides, complete=False)):
        sections.append(section)
        print(section, flush=True)
        for title, table in section.tables.items():
            print(f"\n  {title}")
            print_table(table)
        print()
    report = Report(sections)
    counts = (len(report.problems), "problem"), (len(report.warnings), "warning")
    found = ", ".join(f"{count} {name}{'s' * (count != 1)}" for count, name in counts)
    if report.problems:
        raise ConfigError(f"{found}; mend the problems before spiritseg distill {options.recipe}")
    print(f"{found}; next: spiritseg distill {options.recipe}")
