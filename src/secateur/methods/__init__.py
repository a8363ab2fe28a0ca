"""The methods of the papers, one short file each. Importing a file registers its methods."""

from secateur.methods import (
    activation,
    alps,
    gblm,
    greedy,
    magnitude,
    shortened_llama,
    shortgpt,
    sparsegpt,
    wanda,
    wandapp,
)
from secateur.methods.base import (
    Effect,
    Method,
    Refine,
    Removal,
    Solution,
    States,
    every,
    every_of_both,
    every_remover,
    get,
)
from secateur.methods.parameters import Params, describe_fields

__all__ = [
    "Effect",
    "Method",
    "Params",
    "Refine",
    "Removal",
    "Solution",
    "States",
    "activation",
    "alps",
    "describe_fields",
    "every",
    "every_of_both",
    "every_remover",
    "gblm",
    "get",
    "greedy",
    "magnitude",
    "shortened_llama",
    "shortgpt",
    "sparsegpt",
    "wanda",
    "wandapp",
]
