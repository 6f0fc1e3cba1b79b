"""Recipes: experiments on disk, and what makes two experiments the same."""

from __future__ import annotations

from spiritseg.recipes.identity import differences, fingerprint, to_yaml
from spiritseg.recipes.load import (
    Recipe,
    Recipes,
    experiment_from_dict,
    load_experiment,
    recipe_names,
    recipes,
    recorded_experiment,
)

__all__ = [
    "Recipe",
    "Recipes",
    "differences",
    "experiment_from_dict",
    "fingerprint",
    "load_experiment",
    "recipe_names",
    "recipes",
    "recorded_experiment",
    "to_yaml",
]
