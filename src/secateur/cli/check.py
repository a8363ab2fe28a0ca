"""`secateur check`: prove the sparsity of a model from its files."""

from __future__ import annotations

import json

from rich.markup import escape

import secateur
from secateur.cli.app import Json, app
from secateur.cli.options import Given, options_of
from secateur.cli.terminal import amount, print_table, say, say_exactly
from secateur.errors import CheckFailedError
from secateur.record.check import Proof
from secateur.record.check_settings import CheckSettings


@app.command()
@options_of(CheckSettings)
def check(given: Given, as_json: Json = False) -> None:
    """Prove the sparsity and the checksums of MODEL from its files. Exit status 1 if one fails.

    What run.json leaves dense is listed as what it says, and every file of weights that nothing
    vouches for is named.
    """
    proof = secateur.check(**given)
    if as_json:
        say_exactly(json.dumps(proof.as_dict(), indent=2))
    else:
        _print(proof)
    if proof.complaint is not None:
        raise CheckFailedError(proof.complaint, where=given["model"])


def _print(proof: Proof) -> None:
    """Print what was counted by kind of matrix, the verdict first, and what is left dense."""
    asked = proof.pattern is not None
    rows = [
        [
            f"{kind.verdict:<5} {kind.kind}" if asked else kind.kind,
            str(kind.matrices),
            amount(kind.weights),
            f"{kind.zeros / kind.weights:.4%}",
            f"{kind.lowest:.4%}",
            f"{kind.highest:.4%}",
        ]
        for kind in proof.kinds
    ]
    print_table(["matrices", "count", "weights", "zeros", "lowest", "highest"], rows)
    weights = amount(proof.weights)
    say(
        f"in all {amount(proof.zeros)} zeros,"
        f" {proof.zeros / proof.weights:.4%} of {weights} weights"
        + ("" if asked or proof.removed or proof.asked else "; no pattern was asked for")
    )
    if asked:
        each = ", ".join(f"{pattern}: {amount(of)}" for pattern, of in proof.covered_by.items())
        say(
            f"{amount(proof.covered)} of {weights} prunable weights are to have the pattern"
            f" ({each or proof.pattern})"
        )
    for line in proof.removed:
        say(escape(line))
    if proof.asked is not None:
        say(f"{proof.asked} {'holds' if proof.structures is None else 'fails'}")
    if proof.kept is not None:
        say(escape(str(proof.kept)))
    for kind, count in proof.grids.kinds.items():
        say(f"{count} matrices are quantised: {kind}")
    for name in proof.grids.off:
        say(escape(f"not quantised as it is to be: {name}"))
    for left in proof.left_dense:
        by_record = " by run.json" if left.chosen and proof.by_record else ""
        say(escape(f"left dense{by_record}, {left}"))
    if proof.files:
        unchanged = proof.files - len(proof.changed)
        say(f"{unchanged} of {proof.files} files are as they were written")
    for name in proof.other_source:
        say(escape(f"not the source's: {name}"))
    for name in proof.misstated:
        say(escape(f"not as run.json says: {name}"))
    for name in proof.unproved:
        say(escape(f"not proved: {name}"))
