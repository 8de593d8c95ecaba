"""Recipes: from YAML to frozen models, with every error at once and the line it stands on."""

from vexport.recipe.checks import is_ablation
from vexport.recipe.load import (
    find_recipe,
    load_recipe,
    recipe_hash,
    recipes_folder,
    shipped_recipes,
)
from vexport.recipe.sections import DigitsSection, ImagesSection, Recipe

__all__ = [
    "DigitsSection",
    "ImagesSection",
    "Recipe",
    "find_recipe",
    "is_ablation",
    "load_recipe",
    "recipe_hash",
    "recipes_folder",
    "shipped_recipes",
]
