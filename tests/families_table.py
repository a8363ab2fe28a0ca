"""docs/families.md: which families are tested, how they are read, and how much of them is pruned.

python tests/families_table.py          # writes the file anew
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers.utils import logging

from secateur.checkpoint import StreamedModel, find_matrices, open_model
from secateur.methods import every
from tiny import EVERY_FAMILY, make_model, save

TABLE = Path(__file__).parent.parent / "docs" / "families.md"
HOW_TO_WRITE = "python tests/families_table.py"
METHODS = [method.name for method in every()]
PATTERNS = ["2:4", "50%"]
TESTED = [*EVERY_FAMILY]
"""Each with every method and every pattern, in `test_families.py`."""

_HEAD = f"""# Families

Each of these is pruned from disk to disk in the tests, as a tiny random model, by every method
({", ".join(METHODS)})
to {" and ".join(PATTERNS)}; the result is loaded by transformers and gives the logits that the same
pruning gives in memory. The gradients, and what goes from block to block, are compared with the
model's own. A family that is not here works if its blocks' matrices are found, and is refused with
a message if less than 90 % of them are.

*Read*: "streamed" holds one block in memory at a time, "whole" all of them. *Prunable*: the share
of the blocks' parameters with two dimensions or more that is pruned; the rest stays as it is.

| family | class | read | prunable | methods |
|---|---|---|---:|---|
"""
_FOOT = f"""
The tests make this table and compare it with the file; `{HOW_TO_WRITE}` writes it
anew.
"""


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
        rows.append(f"| {family} | {name} | {read} | {pruned / present:.1%} | all |")
    return _HEAD + "\n".join(rows) + "\n" + _FOOT


if __name__ == "__main__":
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as root:
        saved = {
            family: save(make_model(family, dtype=torch.bfloat16), Path(root) / family)
            for family in TESTED
        }
        TABLE.write_text(table(saved), encoding="utf-8")
