"""What the commands print: a result as lines and tables for a person, or as JSON."""

from __future__ import annotations

import json

from rich.markup import escape

from secateur.cli.terminal import amount, print_table, say, say_exactly, with_error
from secateur.comparison.cliff import Cliff
from secateur.comparison.pipeline import FinishedRun
from secateur.data import ImageProtocol, Protocol
from secateur.evaluation import Classification, Evaluation, TaskEvaluation
from secateur.export import Packing
from secateur.inference import BenchReport, summarise, tabulate
from secateur.methods import describe_fields, every_of_both
from secateur.recipe import Regional
from secateur.record import RecoveryRecord, RunRecord
from secateur.reporting import ComparisonResult, Report, as_measured, side_by_side, table_of
from secateur.reporting.cliff_figure import cliff_as_text, cliff_notes, cliff_table, cliff_title
from secateur.sparsity import IN_FULL


def run(record: RunRecord) -> None:
    """Print what a pruning run did."""
    error = record.mean_output_error
    removed = "".join(
        f"removed {one.lost} of {one.of} {IN_FULL[one.unit]}, " for one in record.lost
    )
    done = f"pruned {amount(record.zeros)} of {amount(record.weights)} weights"
    share = record.sparsity
    if record.pruning and record.pruning[-1].removes:
        gone = record.dense_weights - record.weights
        done, share = (
            f"{amount(gone)} of {amount(record.dense_weights)} weights",
            gone / max(1, record.dense_weights),
        )
    say(
        f"{removed}{done} ({share:.2%}) in {record.seconds:.1f} s"
        + ("" if error is None else f", mean output error of a block {error:.4f}")
        + f", peak memory {amount(record.peak_memory_bytes, 'B')}"
    )
    for measured in record.evaluations:
        say(
            f"perplexity  {measured.perplexity:.4f} ± {measured.standard_error:.4f} (dense"
            f" {measured.dense_perplexity:.4f}), divergence {measured.divergence:.5f} nats per"
            f" token, {escape(measured.protocol.source)}: {measured.protocol.sequences} windows"
            f" of {measured.protocol.sequence_length} tokens{_begun(measured.protocol)}"
        )
    if record.recovery is not None:
        _recovered(record.recovery)
    if (out_folder := record.settings["out"]) is not None:
        say(f"written to {escape(str(out_folder))}")
    else:
        say("measured only: no --out was given, nothing is written")


def beginning(runs: int) -> None:
    """Print what the demo is about to do."""
    say(f"every method on the bundled model: {runs} runs, a few minutes")


def on_a_real_model() -> None:
    """Print how to see the same, as the demo shows it, on a model that was pretrained."""
    say("\nthe same on a real model: the first command fetches SmolLM2-135M, the second compares")
    say("  python benchmarks/real_models.py models smollm2-135m")
    say(
        "  secateur compare models/smollm2-135m --methods magnitude,wanda,sparsegpt,alps"
        " --patterns 2:4 --samples 64 --sequence-length 512 --calibration builtin --text builtin"
        " --windows 48 --out real"
    )


def finished_run(run: FinishedRun) -> None:
    """Print one run of a comparison as it is done; of a classifier nothing is measured yet."""
    record = as_measured(run.record)
    number = f"{run.number} of {run.total}"
    measured = "".join(
        f" perplexity {first.perplexity:.2f} (dense {first.dense_perplexity:.2f})"
        for first in record.evaluations[:1]
    )
    say(
        f"{number:>8}  {escape(run.name):<34}{measured}"
        + ("  found done" if run.repeated else f"  {record.seconds:.1f} s")
    )


def comparison(result: ComparisonResult) -> None:
    """Print the tables of a comparison, what its models write, and which files hold all of it."""
    for compared in map(table_of, side_by_side(result.records)):
        longest = max((len(pattern) for pattern, _ in compared.lines), default=0)
        rows = [
            [
                f"{pattern:<{max(4, longest)}} {line.name}",
                *(f"{cell.mean} ± {cell.spread}" if cell.spread else cell.mean
                  for cell in line.cells),
            ]
            for pattern, line in compared.lines
        ]  # fmt: skip
        say(f"\n{escape(compared.title)}\n")
        print_table(["", *compared.heads], rows)
        for note in compared.notes:
            say(f"[dim]{escape(note)}[/]")
    samples = [(record.method, record.sample) for record in result.records if record.sample]
    if samples:
        first = samples[0][1]
        say(f"\nwhat they write after\n\n{escape(first.prompt)}")
        for name, text in (("dense", first.dense), *((name, s.pruned) for name, s in samples)):
            say(f"[bold]{escape(name)}[/]\n{escape(text.rstrip())}\n")
    say(f"\ntables    {escape(', '.join(map(str, result.tables)))}")
    say(f"report    {escape(str(result.report))}")


def scores(
    scored: Evaluation | TaskEvaluation | Classification, against: str | None, *, as_json: bool
) -> None:
    """Print what a model scored on text, in tasks or on images."""
    if as_json:
        say_exactly(scored.model_dump_json(indent=2))
    elif isinstance(scored, TaskEvaluation):
        _task_scores(scored)
    elif isinstance(scored, Classification):
        _classification(scored, against)
    else:
        _perplexity(scored, against)


def _perplexity(scored: Evaluation, against: str | None) -> None:
    """Print perplexity and divergence, and by which protocol they were measured."""
    protocol = scored.protocol
    say(f"perplexity  {scored.perplexity:.4f} ± {scored.standard_error:.4f} (standard error)")
    if scored.divergence is not None:
        say(f"divergence  {scored.divergence:.5f} nats per token from {escape(str(against))}")
    say(
        f"protocol    {escape(protocol.source)}: {protocol.sequences} windows of"
        f" {protocol.sequence_length} tokens{_begun(protocol)}, {scored.predicted_tokens}"
        f" predicted, {scored.dtype}, tokens sha256 {protocol.token_sha256[:12]}"
    )


def _classification(scored: Classification, against: str | None) -> None:
    """Print how many images a classifier puts into the right class."""
    if scored.top1 is not None:
        say(f"top-1       {scored.top1:.2%} ± {scored.standard_error:.2%} (standard error)")
    if scored.dense_top1 is not None:
        say(f"dense       {scored.dense_top1:.2%}")
    if scored.agreement is not None:
        say(f"agreement   {scored.agreement:.2%} with {escape(str(against))}")
    say(f"protocol    {escape(protocol_line(scored.protocol))}, {scored.dtype}")


def _task_scores(scored: TaskEvaluation) -> None:
    """Print the scores of a model beside the dense one's; ± is a standard error."""
    compared = scored.against is not None
    rows = []
    for task in scored.scores:
        row = [f"{task.task} {task.metric}", str(task.documents)]
        if compared:
            row.append(with_error(task.dense, task.dense_standard_error))
        row.append(with_error(task.value, task.standard_error))
        if compared:
            row.append(with_error(task.difference, task.difference_error, sign="+"))
        rows.append(row)
    models = ["dense", "model", "difference"] if compared else ["model"]
    print_table(["task", "questions", *models], rows)
    limit = "" if scored.limit is None else f", at most {scored.limit} questions each"
    say(f"lm-eval {scored.lm_eval}, {scored.dtype}{limit}, {scored.seconds:.1f} s")


def cliff(measured: Cliff, *, as_json: bool) -> None:
    """Print how damage grows: a table, the curve in letters, its knee, and by which protocol."""
    if as_json:
        say_exactly(measured.model_dump_json(indent=2))
        return
    say(f"{escape(cliff_title(measured))}\n")
    print_table(*cliff_table(measured))
    say("")
    for line in cliff_as_text(measured):
        say(escape(line))
    say("")
    knee, *notes = cliff_notes(measured)
    say(f"[bold]{escape(knee)}[/]")
    for note in notes:
        say(f"[dim]{escape(note)}[/]")
    if (file := measured.settings["out"]) is not None:
        say(f"written to {escape(str(file))}")


def benchmark(timed: BenchReport, *, as_json: bool) -> None:
    """Print how fast every form is, and what it takes."""
    if as_json:
        say_exactly(timed.model_dump_json(indent=2))
        return
    print_table(*tabulate(timed))
    for line in summarise(timed):
        say(escape(line))


def packing(done: Packing, *, as_json: bool) -> None:
    """Print what packing or unpacking did."""
    if as_json:
        say_exactly(json.dumps(done.as_dict(), indent=2))
        return
    forms = ", ".join(f"{count} {form}" for form, count in done.forms.items())
    say(f"{amount(done.before, 'B')} -> {amount(done.after, 'B')} of tensors ({forms})")
    if done.matrices_dense:
        say(
            f"packed matrices take {done.matrices_packed / done.matrices_dense:.2%}"
            f" of {amount(done.matrices_dense, 'B')}"
        )
    say(f"written to {escape(str(done.out))}")


def recovery(record: RunRecord) -> None:
    """Print what training took back of what pruning cost, and where the model is."""
    assert record.recovery is not None
    _recovered(record.recovery)
    say(f"written to {escape(str(record.recovery.settings['out']))}")


def _recovered(done: RecoveryRecord) -> None:
    """Print what a model scored before and after its training, and how long that took."""
    measured = {
        "dense": done.dense,
        "pruned": done.pruned,
        "adapted": done.adapted,
        "recovered": done.recovered,
    }
    for name, model in measured.items():
        if model is not None:
            say(f"{name:<11} perplexity {model.perplexity:.4f} ± {model.standard_error:.4f}")
    if done.damage_removed is not None:
        say(f"taken back  {done.damage_removed:.0%} of what pruning cost")
    elif done.dense is not None and done.pruned is not None:
        say("taken back  nothing: on this text pruning cost nothing")
    say(
        f"trained     {amount(done.trained_parameters)} parameters for {done.steps} steps in"
        f" {done.seconds:.1f} s, best after {done.best_step}"
    )
    say(f"zeros       {amount(done.zeros_before)} before, {amount(done.zeros_after)} after")
    for further in done.also:
        say(
            f"{'recovered':<11} perplexity {further.perplexity:.4f} ± {further.standard_error:.4f}"
            f" on {escape(further.protocol.source)}"
        )


def written_report(written: Report) -> None:
    """Print where a report was written; its text, if it was written nowhere."""
    if written.path is None:
        say_exactly(written.text, end="")
    else:
        say(f"written to {escape(str(written.path))}")


def methods(*, as_json: bool) -> None:
    """Print every method, and the settings of the regional optimiser."""
    known = every_of_both()
    if as_json:
        say_exactly(json.dumps([method.describe() for method in known], indent=2))
        return
    for method in known:
        facts = method.describe()
        say(f"[bold]{facts['name']}[/]  {facts['summary']}")
        if facts["removes"]:
            also = "" if method.removal else "of weights, or "
            say(f"    patterns    {also}such as {facts['removes'][0]}-2: removes whole ones")
        say(f"    needs       {', '.join(facts['needs']) or 'nothing but the weights'}")
        for name, (default, meaning) in facts["parameters"].items():
            say(f"    {name}={default}  {meaning}")
        say(f"    paper       {facts['paper']}\n")
    say("[bold]regional optimiser[/] (of wanda++-ro, wanda++, alps-ro and --mend)")
    for name, (default, meaning) in describe_fields(Regional).items():
        say(f"    regional.{name}={default}  {meaning}")


def protocol_line(protocol: Protocol | ImageProtocol) -> str:
    """Which sequences or images they are, in one phrase."""
    if isinstance(protocol, ImageProtocol):
        known = "labelled" if protocol.labelled else "labelled by the model itself"
        return (
            f"{protocol.images} of {protocol.found} images of {protocol.height} x {protocol.width}"
            f" from {protocol.source}, {known}, sha256 {protocol.sha256[:12]}"
        )
    parts = [f"{part.sequences} {part.source} ({part.sampling})" for part in protocol.parts]
    return (
        f"{protocol.sequences} sequences of {protocol.sequence_length} tokens from"
        f" {' + '.join(parts) or f'{protocol.source} ({protocol.sampling})'}{_begun(protocol)},"
        f" sha256 {protocol.token_sha256[:12]}"
    )


def _begun(protocol: Protocol) -> str:
    """What windows begin with, as a part of a phrase; empty where the tokenizer adds nothing."""
    return f", {protocol.beginning}" if protocol.beginning else ""
