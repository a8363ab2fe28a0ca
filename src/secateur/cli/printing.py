"""What the command prints: records, plans, proofs and errors as lines and tables."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from secateur.comparison.pipeline import FinishedRun
from secateur.data import ImageProtocol, Protocol
from secateur.evaluation import Classification, Evaluation, TaskEvaluation
from secateur.export import Packing
from secateur.methods import describe_fields, every
from secateur.pruning.prepare import Prepared
from secateur.recipe import Regional
from secateur.record import RunRecord
from secateur.record.check import Proof
from secateur.reporting import ComparisonResult, Report, as_measured, side_by_side, table_of

out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)


def run(record: RunRecord) -> None:
    """What a pruning run did."""
    error = record.mean_output_error
    say(
        f"pruned {amount(record.zeros)} of {amount(record.weights)} weights"
        f" ({record.sparsity:.2%}) in {record.seconds:.1f} s"
        + ("" if error is None else f", mean output error of a block {error:.4f}")
        + f", peak memory {amount(record.peak_memory_bytes, 'B')}"
    )
    for measured in record.evaluations:
        say(
            f"perplexity  {measured.perplexity:.4f} ± {measured.standard_error:.4f} (dense"
            f" {measured.dense_perplexity:.4f}), divergence {measured.divergence:.5f} nats per"
            f" token, {escape(measured.protocol.source)}: {measured.protocol.sequences} windows"
            f" of {measured.protocol.sequence_length} tokens"
        )
    if (out_folder := record.settings["out"]) is not None:
        say(f"written to {escape(str(out_folder))}")
    else:
        say("measured only: no --out was given, nothing is written")


def compared(done: FinishedRun) -> None:
    """One run of a comparison, as it is done; of a classifier nothing is measured yet."""
    record = as_measured(done.record)
    place = f"{done.number} of {done.total}"
    measured = "".join(
        f" perplexity {first.perplexity:.2f} (dense {first.dense_perplexity:.2f})"
        for first in record.evaluations[:1]
    )
    say(
        f"{place:>8}  {escape(done.name):<28}{measured}"
        + ("  found done" if done.repeated else f"  {record.seconds:.1f} s")
    )


def comparison(result: ComparisonResult) -> None:
    """The table of a comparison, what its models write, and where all of it is."""
    for shown in map(table_of, side_by_side(result.records)):
        rows = [
            [
                f"{pattern:<5}{line.name}",
                *(f"{cell.mean} ± {cell.spread}" if cell.spread else cell.mean
                  for cell in line.cells),
            ]
            for pattern, line in shown.lines
        ]  # fmt: skip
        say(f"\n{escape(shown.title)}\n")
        out.print(table(["", *shown.heads], rows))
        for note in shown.notes:
            say(f"[dim]{escape(note)}[/]")
    samples = [(record.method, record.sample) for record in result.records if record.sample]
    if samples:
        first = samples[0][1]
        say(f"\nwhat they write after\n\n{escape(first.prompt)}")
        for name, text in (("dense", first.dense), *((name, s.pruned) for name, s in samples)):
            say(f"[bold]{escape(name)}[/]\n{escape(text.rstrip())}\n")
    say(f"\ntables    {escape(', '.join(map(str, result.tables)))}")
    say(f"report    {escape(str(result.report))}")


def evaluation(found: Evaluation, against: str | None) -> None:
    """What a model scored, and by which protocol."""
    protocol = found.protocol
    say(f"perplexity  {found.perplexity:.4f} ± {found.standard_error:.4f} (standard error)")
    if found.divergence is not None:
        say(f"divergence  {found.divergence:.5f} nats per token from {escape(str(against))}")
    say(
        f"protocol    {escape(protocol.source)}: {protocol.sequences} windows of"
        f" {protocol.sequence_length} tokens, {found.predicted_tokens} predicted,"
        f" {found.dtype}, tokens sha256 {protocol.token_sha256[:12]}"
    )


def classification(found: Classification, against: str | None) -> None:
    """How many images a classifier puts into the right class."""
    if found.top1 is not None:
        say(f"top-1       {found.top1:.2%} ± {found.standard_error:.2%} (standard error)")
    if found.dense_top1 is not None:
        say(f"dense       {found.dense_top1:.2%}")
    if found.agreement is not None:
        say(f"agreement   {found.agreement:.2%} with {escape(str(against))}")
    say(f"protocol    {escape(_sequences(found.protocol))}, {found.dtype}")


def proof(found: Proof) -> None:
    """What was counted, by kind of matrix."""
    rows = [
        [
            kind.kind,
            str(kind.matrices),
            amount(kind.weights),
            f"{kind.zeros / kind.weights:.4%}",
            f"{kind.lowest:.4%}",
            f"{kind.highest:.4%}",
            "" if found.pattern is None else "fails" if kind.failing else "holds",
        ]
        for kind in found.kinds
    ]
    looked_for = "" if found.pattern is None else str(found.pattern)
    heads = ["matrices", "count", "weights", "zeros", "lowest", "highest", looked_for]
    out.print(table(heads, rows))
    say(
        f"in all {amount(found.zeros)} zeros, {found.zeros / found.weights:.4%} of"
        f" {amount(found.weights)} weights"
        + ("; no pattern was asked for" if found.pattern is None else "")
    )
    if found.files:
        say(f"{found.files - len(found.changed)} of {found.files} files are as they were written")


def packing(done: Packing) -> None:
    """What packing or unpacking did."""
    forms = ", ".join(f"{count} {form}" for form, count in done.forms.items())
    say(f"{amount(done.before, 'B')} -> {amount(done.after, 'B')} of tensors ({forms})")
    if done.matrices_dense:
        say(
            f"packed matrices take {done.matrices_packed / done.matrices_dense:.2%}"
            f" of {amount(done.matrices_dense, 'B')}"
        )
    say(f"written to {escape(str(done.out))}")


def recovery(record: RunRecord) -> None:
    """What training took back of what pruning cost."""
    done = record.recovery
    assert done is not None
    measured = {
        "dense": done.dense,
        "pruned": done.pruned,
        "adapted": done.adapted,
        "recovered": done.recovered,
    }
    for name, found in measured.items():
        if found is not None:
            say(f"{name:<11} perplexity {found.perplexity:.4f} ± {found.standard_error:.4f}")
    if done.damage_removed is not None:
        say(f"taken back  {done.damage_removed:.0%} of what pruning cost")
    say(
        f"trained     {amount(done.trained_parameters)} parameters for {done.steps} steps in"
        f" {done.seconds:.1f} s, best after {done.best_step}"
    )
    say(f"zeros       {amount(done.zeros_before)} before, {amount(done.zeros_after)} after")
    say(f"written to {escape(str(done.settings['out']))}")


def task_scores(found: TaskEvaluation) -> None:
    """What a model scored, beside the dense one; ± is a standard error."""
    rows = []
    for score in found.scores:
        row = [f"{score.task} {score.metric}", str(score.documents)]
        if found.against is not None:
            row.append(_with_error(score.dense, score.dense_standard_error))
        row.append(_with_error(score.value, score.standard_error))
        if found.against is not None:
            row.append(_with_error(score.difference, score.difference_error, sign="+"))
        rows.append(row)
    model = ["dense", "model", "difference"] if found.against is not None else ["model"]
    out.print(table(["task", "questions", *model], rows))
    limit = "" if found.limit is None else f", at most {found.limit} questions each"
    say(f"lm-eval {found.lm_eval}, {found.dtype}{limit}, {found.seconds:.1f} s")


def report(written: Report) -> None:
    """Where a report was written; its text, if it was written nowhere."""
    if written.path is None:
        print(written.text, end="")
    else:
        say(f"written to {escape(str(written.path))}")


def methods() -> None:
    """Every method, and the settings of the regional optimiser."""
    for method in every():
        facts = method.describe()
        say(f"[bold]{facts['name']}[/]  {facts['summary']}")
        say(f"    needs       {', '.join(facts['needs']) or 'nothing but the weights'}")
        for name, (default, meaning) in facts["parameters"].items():
            say(f"    {name}={default}  {meaning}")
        say(f"    paper       {facts['paper']}\n")
    say("[bold]regional optimiser[/] (of wanda++-ro and wanda++)")
    for name, (default, meaning) in describe_fields(Regional).items():
        say(f"    regional.{name}={default}  {meaning}")


def plan(prepared: Prepared) -> None:
    """What a run would do and take."""
    recipe, shapes = prepared.recipe, prepared.estimate
    source, calibration = prepared.source, prepared.calibration
    for notice in prepared.notices:
        warn(f"[yellow]notice[/] {escape(notice)}")
    rows = [
        ["model", f"{type(source.model).__name__} in {prepared.folder}"],
        ["method", f"{recipe.method} {recipe.spelled_out()['parameters']}"],
        ["pattern", f"{recipe.chosen_pattern} ({recipe.chosen_pattern.sparsity:.2%} zeros)"],
        ["calibration", "none" if calibration is None else _sequences(calibration.protocol)],
        ["blocks", str(shapes.blocks)],
        ["prunable weights", amount(shapes.prunable_weights)],
        ["left as they are", amount(shapes.other_weights)],
        ["computed on", f"{source.device} in {str(source.dtype).removeprefix('torch.')}"],
        ["memory of a block", f"{amount(shapes.block_bytes, 'B')} with its statistics"],
        ["memory of activations", amount(shapes.activation_bytes, "B")],
        ["work", f"{amount(shapes.flops, 'FLOP')} in matrix products"],
        ["result", recipe.out or "nowhere: no --out was given"],
    ]
    if regional := recipe.spelled_out()["regional"]:
        rows.insert(3, ["regional", str(regional)])
    for name, fact in rows:
        say(f"{name:<22} {escape(fact)}")
    say("nothing was done: this was a dry run")


def error(text: str) -> None:
    """One line on standard error."""
    warn(f"[red]error:[/] {escape(text)}")


def say(line: str) -> None:
    """A line of the result; the terminal wraps it, so that it can be copied and piped whole."""
    out.print(line, soft_wrap=True)


def warn(line: str) -> None:
    """A line on standard error."""
    err.print(line, soft_wrap=True)


def table(columns: list[str], rows: list[list[str]]) -> Table:
    """A plain table: the first column is text, the others are numbers."""
    made = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        first = number == 0
        made.add_column(
            column, justify="left" if first else "right", overflow="fold", no_wrap=first
        )
    for row in rows:
        made.add_row(*row)
    return made


def amount(count: float, unit: str = "") -> str:
    """A number with a decimal prefix: 13500000 -> "13.5 M"."""
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        rounded = float(f"{count / size:.3g}")  # so that 999 999 is 1 M, not 1e+03 k
        if abs(rounded) >= 1:
            return f"{rounded:g} {prefix}{unit}"
    return f"{count:.3g} {unit}".rstrip()


def _with_error(value: float | None, error: float | None, sign: str = "") -> str:
    if value is None:
        return ""
    return f"{value:{sign}.4f}" + ("" if error is None else f" ± {error:.4f}")


def _sequences(protocol: Protocol | ImageProtocol) -> str:
    if isinstance(protocol, ImageProtocol):
        known = "labelled" if protocol.labelled else "labelled by the model itself"
        return (
            f"{protocol.images} of {protocol.found} images of {protocol.height} x {protocol.width}"
            f" from {protocol.source}, {known}, sha256 {protocol.sha256[:12]}"
        )
    return (
        f"{protocol.sequences} sequences of {protocol.sequence_length} tokens from"
        f" {protocol.source} ({protocol.sampling}), sha256 {protocol.token_sha256[:12]}"
    )
