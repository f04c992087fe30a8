"""Compose a method: pick a transform, a grid, a rounding, an objective and a scope; rules say what fits."""

from lowbit_nb.compose.menus import CHOICES, KNOWN, LEARNED, RULES, Rule
from lowbit_nb.compose.recipe import Recipe, known

__all__ = ["CHOICES", "KNOWN", "LEARNED", "RULES", "Recipe", "Rule", "known"]
