"""Recipes: experiments on disk, and what makes two experiments the same."""

from __future__ import annotations

from spiritseg.recipes.identity import differences, fingerprint, to_yaml
from spiritseg.recipes.load import (
    experiment_from_dict,
    load_experiment,
    recipe_names,
    recipe_summary,
)

__all__ = [
    "differences",
    "experiment_from_dict",
    "fingerprint",
    "load_experiment",
    "recipe_names",
    "recipe_summary",
    "to_yaml",
]
