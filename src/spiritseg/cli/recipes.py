"""spiritseg recipes."""

from __future__ import annotations

from spiritseg.cli.words import make_parser


def run(words: list[str]) -> None:
    """List the shipped recipes, grouped by what they need."""
    make_parser("recipes", run).parse_args(words)
    from spiritseg.recipes import recipes

    print(recipes())
