"""The methods of the papers, one short file each. Importing a file registers its methods."""

from secateur.methods import alps, gblm, magnitude, sparsegpt, wanda, wandapp
from secateur.methods.base import Method, Params, Refine, Solution, describe_fields, every, get

__all__ = [
    "Method",
    "Params",
    "Refine",
    "Solution",
    "alps",
    "describe_fields",
    "every",
    "gblm",
    "get",
    "magnitude",
    "sparsegpt",
    "wanda",
    "wandapp",
]
