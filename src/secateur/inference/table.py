"""Makes heads and rows of text of what was measured: losses are called losses."""

from __future__ import annotations

from secateur.inference.benchmark import BenchReport, Measurement


def tabulate(found: BenchReport) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: a row per phase and batch, per form its milliseconds, tokens and ratio."""
    forms = [loaded.form for loaded in found.forms]
    heads = ["batch", *(f"{form} ms, tokens/s" for form in forms)]
    by_place: dict[tuple[str, int], dict[str, Measurement]] = {}
    for measured in found.measurements:
        by_place.setdefault((measured.phase, measured.batch), {})[measured.form] = measured
    rows = [
        [f"{phase} {batch}", *(_cell(measured.get(form)) for form in forms)]
        for (phase, batch), measured in sorted(
            by_place.items(), key=lambda place: (place[0][0] == "decode", place[0][1])
        )
    ]
    return heads, rows


def summarise(found: BenchReport) -> list[str]:
    """The lines below the table: how it was measured, what the forms take, what is missing."""
    return [
        f"{found.device}, {found.dtype}; prompts of {found.prompt_tokens} tokens and"
        f" {found.new_tokens} new ones; median of {found.repeats}, ± half their range",
        *(
            f"{form.form:<16} {form.sparse_matrices} sparse matrices, weights"
            f" {form.weight_bytes / 1e6:,.1f} MB, peak memory {form.peak_bytes / 1e6:,.1f} MB"
            for form in found.forms
        ),
        *(f"notice: {notice}" for notice in found.notices),
    ]


def _cell(measured: Measurement | None) -> str:
    if measured is None:
        return "-"
    latency = measured.latency
    spread = 500 * (latency.highest - latency.lowest)
    cell = f"{1000 * latency.seconds:.2f} ± {spread:.2f}, {measured.tokens_per_second:,.0f}"
    if measured.ratio is None:
        return cell
    verdict = " loss" if measured.ratio < 1 else ""
    return f"{cell} ({measured.ratio:.2f}x{verdict})"
