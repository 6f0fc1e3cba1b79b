"""spiritseg recipes."""

from __future__ import annotations

from spiritseg.cli.words import make_parser


def run(words: list[str]) -> None:
    """List the shipped recipes."""
    make_parser("recipes", run).parse_args(words)
    from spiritseg.recipes import recipe_names, recipe_summary

    for name in recipe_names():
        print(f"{name:30} {recipe_summary(name)}")
