"""The golden numbers of the bundled model: perplexity of every method on tokens kept beside them.

    python tests/golden_numbers.py        measures them anew, after the model or a method changed

The tokens are cut once, since the built-in text differs between versions of Python.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from secateur.bundled import BUILTIN_MODEL, FOLDER
from secateur.checkpoint.model_facts import load_tokenizer
from secateur.data import Draw, load_calibration, load_heldout
from secateur.machine.facts import now, versions
from secateur.methods import every
from secateur.pruning import pipeline
from secateur.recipe import Recipe

TOKENS = Path(__file__).parent / "golden" / "tokens.safetensors"
NUMBERS = TOKENS.with_name("perplexity.json")
PATTERN = "2:4"
SEQUENCES, LENGTH = 32, 128


def measure(method: str, tokens: dict[str, Tensor], folder: Path) -> dict[str, float]:
    """Perplexity by a method, and "dense" that of the dense model.

    Args:
        method: the name of a method.
        tokens: what `cut_tokens` gives.
        folder: where the tokens are written to, since a run reads them from files.
    """
    calibration, text = folder / "calibration.safetensors", folder / "text.safetensors"
    save_file({"input_ids": tokens["calibration"]}, calibration)
    save_file({"input_ids": tokens["heldout"]}, text)
    recipe = Recipe.build(
        {
            "model": BUILTIN_MODEL,
            "method": method,
            "pattern": PATTERN,
            "calibration": str(calibration),
            "samples": SEQUENCES,
            "text": str(text),
            "sequence_length": LENGTH,
            "device": "cpu",
        }
    )
    [evaluation] = pipeline.run_pruning(recipe).evaluations
    assert evaluation.dense_perplexity is not None
    return {method: evaluation.perplexity, "dense": evaluation.dense_perplexity}


def cut_tokens() -> dict[str, Tensor]:
    """Calibration and held-out windows, int32 [sequences, tokens]."""
    tokenizer = load_tokenizer(FOLDER)
    calibration = load_calibration("builtin", Draw(SEQUENCES, LENGTH), tokenizer=tokenizer)
    heldout = load_heldout(
        "builtin", tokenizer=tokenizer, sequence_length=LENGTH, windows=None
    ).input_ids
    return {
        "calibration": calibration.input_ids.int(),
        "heldout": heldout[:: len(heldout) // SEQUENCES][:SEQUENCES].int().contiguous(),
    }


def main() -> None:
    """Cut the tokens if there are none, measure, write."""
    import tempfile

    TOKENS.parent.mkdir(exist_ok=True)
    if not TOKENS.exists():
        save_file(cut_tokens(), TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        perplexities: dict[str, float] = {}
        for method in every():
            perplexities |= measure(method.name, load_file(TOKENS), Path(folder))
    facts = {
        "command": "python tests/golden_numbers.py",
        "made": now(),
        "versions": versions(),
        "perplexity": {name: round(value, 4) for name, value in perplexities.items()},
    }
    NUMBERS.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(NUMBERS.read_text())


if __name__ == "__main__":
    main()
