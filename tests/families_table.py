"""docs/families.md: which families are tested, how they are read, and how much of them is pruned.

python tests/families_table.py   # writes the file anew; after `make families` alone is it true
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers.utils import logging

from families import BY_EVERY_METHOD, EVERY_FAMILY, KINDS
from secateur.checkpoint import StreamedModel, find_matrices, open_model
from secateur.machine.facts import now, versions
from secateur.methods import every
from tiny import make_model, save

TABLE = Path(__file__).parent.parent / "docs" / "families.md"
HOW_TO_WRITE = "make families"
METHODS = [method.name for method in every()]
PATTERNS = ["2:4", "50%"]
TESTED = [*EVERY_FAMILY]
EVERY_CASE = [(method, pattern) for method in METHODS for pattern in PATTERNS]
ALWAYS = [("sparsegpt", "50%"), ("wanda++", "2:4")]
"""What `make test` prunes every family by, and to.

SparseGPT solves from a Hessian and changes the weights that remain; Wanda++ scores by input norms
and regional gradients, and trains against the block's outputs.
"""

_HEAD = f"""# Families

Each of these is pruned from disk to disk as a tiny random model, and what is written is loaded by
transformers in the model's own class: it gives the logits that the same pruning gives in memory, no
tensor is lost, renamed or of another dtype, and none changes but the matrices of the blocks.
`make families` does so for all of them by every method
({", ".join(METHODS)}),
to {" and to ".join(PATTERNS)}, and writes this page when all has passed. `make test`, which every
change must pass, does the same for some, and prunes each of the others
{" and ".join(f"by {method} to {pattern}" for method, pattern in ALWAYS)}.
Both compare, for every family, what goes from block to block and the logits with the model's own
forward pass, and the gradients with its own backward pass. None of this is done with weights that
somebody trained: [log.md](log.md) has what was measured on those.
A family that is not here works if its blocks' matrices are found, and is refused with a message if
less than three quarters of them are.

*Read*: "streamed" holds one block in memory at a time, "whole" all of them. *Prunable*: the share
of the blocks' parameters with two dimensions or more that is pruned; the rest (routers, short
convolutions, tables of decay) stays as it is.

| family | class | read | prunable | `make families` | `make test` | kind of block |
|---|---|---|---:|---|---|---|
"""
_FOOT = f"""
The tests compare this page with what they would write, all but the next line; `{HOW_TO_WRITE}`
writes it anew.

"""
_PASSED = "Last passed by every method: "


def cases_of(family: str, thorough: bool) -> list[tuple[str, str]]:
    """By what methods, and to what patterns, a run of the tests prunes a family.

    Args:
        family: a key of `EVERY_FAMILY`.
        thorough: the run is that of `make families`.
    """
    return EVERY_CASE if thorough or family in BY_EVERY_METHOD else ALWAYS


def table(folders: Mapping[str, Path]) -> str:
    """The file, from folders with a tiny model of each family."""
    rows = []
    for family in TESTED:
        source = open_model(folders[family], torch.device("cpu"))
        blocks = source.blocks.modules
        pruned = sum(matrix.read().numel() for block in blocks for matrix in find_matrices(block))
        present = sum(p.numel() for block in blocks for p in block.parameters() if p.dim() >= 2)
        read = "streamed" if isinstance(source, StreamedModel) else "whole"
        name = type(source.model).__name__
        always = "all" if family in BY_EVERY_METHOD else ", ".join(method for method, _ in ALWAYS)
        kind = KINDS.get(family, "")
        cells = [family, name, read, f"{pruned / present:.1%}", "all", always, kind]
        rows.append(f"| {' | '.join(cells)} |")
    return _HEAD + "\n".join(rows) + "\n" + _FOOT


def passed_line() -> str:
    """The line that says when, and with which versions, every family passed by every method."""
    made = versions()
    libraries = ", ".join(f"{name} {made[name]}" for name in ("torch", "transformers"))
    return f"{_PASSED}{now()[:10]}, {libraries}.\n"


def without_passed_line(page: str) -> str:
    """The page without the line that no test can foretell, which must be its last."""
    body, mark, last = page.rpartition(_PASSED)
    if not mark or last.count("\n") != 1:
        raise ValueError(f"the page does not end in {_PASSED!r}")
    return body


if __name__ == "__main__":
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as root:
        saved = {
            family: save(make_model(family, dtype=torch.bfloat16), Path(root) / family)
            for family in TESTED
        }
        TABLE.write_text(table(saved) + passed_line(), encoding="utf-8")
