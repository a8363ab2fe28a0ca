"""All that decides a run: its fields, their faults, and what follows for every block."""

from secateur.recipe.plan import Plan, plan_of
from secateur.recipe.recipe import Bos, Precision, Recipe, Schedule
from secateur.recipe.recover_stage import RecoverStage
from secateur.recipe.regional import Regional

__all__ = ["Bos", "Plan", "Precision", "Recipe", "RecoverStage", "Regional", "Schedule", "plan_of"]
