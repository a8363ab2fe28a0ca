"""The curve of damage by share removed in a file: a page, a chart, or numbers for a program."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from markupsafe import Markup

from secateur.checkpoint.durable import write_text, writing
from secateur.comparison.cliff import Cliff, CliffPoint
from secateur.reporting.cliff_figure import cliff_notes, cliff_panel, cliff_table, cliff_title
from secateur.reporting.page import COLOURS, MARKS, policy_hash, style_sheet, templates
from secateur.reporting.reproduce import cut_of
from secateur.sparsity import IN_FULL

_XML = 'xmlns="http://www.w3.org/2000/svg" '


def write_cliff(cliff: Cliff, file: Path) -> None:
    """Write a curve in the form that the ending of the file asks for; it appears whole.

    Args:
        cliff: the curve.
        file: may be written (`claim_file`); it ends in .html, .svg, .json or .csv.

    Raises:
        OutputError: it cannot be written.
    """
    ending = file.suffix.lower()
    if ending == ".json":
        text = cliff.model_dump_json(indent=2) + "\n"
    elif ending == ".csv":
        text = cliff_as_csv(cliff)
    else:
        text = _drawn(cliff, f"cliff{ending}.j2")
    if ending == ".svg":
        text = text.replace("<svg ", f"<svg {_XML}", 1)
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)


def cliff_as_csv(cliff: Cliff) -> str:
    """A line for every point, the dense model first; numbers are unrounded."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(
        ["removed", "of", "unit", "gone", "perplexity", "perplexity_standard_error",
         "divergence_nats", "divergence_standard_error", "loss_above_dense_nats",
         "loss_above_dense_standard_error", "damage", "knee"]
    )  # fmt: skip
    dense = [cliff.dense_perplexity, cliff.dense_standard_error, 0.0, 0.0, 0.0, 0.0, 0.0, 0]
    writer.writerow([0, cliff.of, cliff.unit, "", *dense])
    for point in cliff.points:
        writer.writerow(
            [point.removed, cliff.of, cliff.unit, _which(point), point.perplexity,
             point.standard_error, point.divergence, point.divergence_error,
             point.loss_above_dense, point.loss_above_dense_error, point.damage,
             int(point.removed == cliff.knee)]
        )  # fmt: skip
    return written.getvalue()


def _which(point: CliffPoint) -> str:
    """What is gone: "3 7 1" of blocks; of structures in every block those of each, "0-3,7; 1"."""
    by_block = any(isinstance(one, str) for one in point.gone)
    return ("; " if by_block else " ").join(map(str, point.gone))


def _drawn(cliff: Cliff, template: str) -> str:
    """The page or the chart."""
    style = style_sheet()
    heads, rows = cliff_table(cliff)
    return (
        templates()
        .get_template(template)
        .render(
            title=cliff_title(cliff),
            panel=cliff_panel(cliff),
            heads=heads,
            rows=rows,
            notes=cliff_notes(cliff),
            facts=list(_facts(cliff)),
            style=Markup(style),
            style_hash=policy_hash(style),
            marks=MARKS,
            colours=COLOURS,
            version=version("secateur"),
        )
    )


def _facts(cliff: Cliff) -> Iterator[tuple[str, str]]:
    """On what and how it was measured: name and value."""
    yield "model", cliff.model
    yield "architecture", cliff.architecture
    yield "removed", f"{IN_FULL[cliff.unit]}, chosen by {cliff.method}"
    for name, protocol in (("text", cliff.heldout), ("calibration", cliff.calibration)):
        if protocol is not None:
            told = f"{protocol.source}: {cut_of(protocol)}"
            yield name, f"{told}, tokens sha256 {protocol.token_sha256[:12]}"
    asked = {name: value for name, value in cliff.settings.items() if value not in (None, {}, ())}
    yield "settings", ", ".join(f"{name} {value}" for name, value in asked.items())
    yield "measured", f"{cliff.created}, in {cliff.seconds:.1f} s"
    yield "computed in", f"{cliff.dtype} on {cliff.device}"
    for name, facts in (("machine", cliff.machine), ("versions", cliff.versions)):
        yield name, ", ".join(f"{key} {value}" for key, value in facts.items())
