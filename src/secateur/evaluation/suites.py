"""Named lists of tasks, so that a table can be repeated by its name; the names are lm-eval's.

The nine are those of the Wanda++ paper's table of zero-shot accuracies, the seven those of Wanda's
and of its published script. `continuation` needs no network.
"""

from __future__ import annotations

from secateur.evaluation.continuation import NAME as CONTINUATION

SUITES: dict[str, tuple[str, ...]] = {
    "wanda++": (
        *("wic", "mrpc", "hellaswag", "arc_easy", "arc_challenge", "winogrande", "boolq", "rte"),
        "mmlu",
    ),
    "wanda": (
        *("boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"),
    ),
    "offline": (CONTINUATION,),
}
"""Name -> tasks. Sources: arXiv 2503.04992 and arXiv 2306.11695, section 4."""


def spell_out(asked: str) -> tuple[str, ...]:
    """The tasks that a list with commas between names: suites are replaced by their members."""
    names = [name.strip() for name in asked.split(",") if name.strip()]
    members = [task for name in names for task in SUITES.get(name, (name,))]
    return tuple(dict.fromkeys(members))
