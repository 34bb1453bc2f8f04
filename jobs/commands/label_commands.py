"""The commands `spin review` and `spin labels`: documents whose labels people check, and nights that they score."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs import terminal
from jobs.extras import PipelinesCommand
from jobs.figures import format_estimate
from jobs.options import AsJson, Date, File, Output, Set, check_new, command_group
from spin.errors import UserError
from spin.pages.number_format import counted
from spin.settings import load_settings

if TYPE_CHECKING:
    from pipelines.nightly.report.night_report import ScoredNight
    from pipelines.nightly.review.checked_labels import AddedLabels

Name = Annotated[str | None, typer.Option("--model", metavar="NAME", help="registered name; default: the only one")]
AnyName = Annotated[str | None, typer.Option("--model", metavar="NAME", help="registered name; default: any")]

app = command_group("labels", "Add labels that people have given to documents of nights, and score the nights by them.")


def review(
    output: Output,
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="file to write: .csv or .parquet; a new one")] = Path(
        "review.csv"
    ),
    documents: Annotated[int, typer.Option(min=10, help="number of documents to check")] = 200,
    date: Date = None,
    model: Name = None,
    settings: Annotated[
        str | None,
        typer.Option("--settings", metavar="SETTINGS", help="settings file of the night, to write the texts too"),
    ] = None,
    seed: Annotated[int, typer.Option(help="another one draws other documents")] = 0,
    set: Set = [],  # noqa: B006
) -> None:
    """Draw documents of a night to label: the more in doubt its label is, the likelier a document is drawn."""
    from pipelines.nightly.report.night_texts import read_texts
    from pipelines.nightly.review.label_file import write_review
    from pipelines.nightly.review.review_sample import choose_documents
    from pipelines.storage.object_store import Store

    check_new(to)
    if to.suffix not in (".csv", ".parquet"):
        raise UserError(f"--to {to}: expected a name that ends with .csv or .parquet")
    sample = choose_documents(output, documents=documents, date=date, model=model, seed=seed)
    texts = None
    if settings is not None:
        data, ids = load_settings(settings, set).data, sample.rows["id"].to_pylist()
        texts = dict(read_texts(data, Store(output), sample.night.run, ids))
    write_review(sample, to, texts)
    reasons = sample.rows["reason"].to_pylist()
    counts = ", ".join(f"{reasons.count(name)} {name}" for name in dict.fromkeys(reasons))
    night = f"the night of {sample.night.date} of {sample.night.model}"
    lines = [f"{counted(len(reasons), 'document')} of {night}: {counts}"]
    if texts is not None and len(texts) < len(reasons):
        lines.append(f"the input of {len(reasons) - len(texts)} of them is not there any more")
    command = shlex.join(["spin", "labels", "add", str(to), "--output", output])
    lines.append(f"wrote {to}; fill in the column true_label, then: {command}")
    terminal.say_about("review", lines)


@app.command(cls=PipelinesCommand)
def add(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV or Parquet with the columns id and true_label")],
    output: Output,
    date: Date = None,
    model: AnyName = None,
    new_class: Annotated[
        list[str],
        typer.Option(
            metavar="NAME", help="class that the model does not have, whose labels count as wrong; may be repeated"
        ),
    ] = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Add labels to the nights that predicted their documents, and print the accuracy of these nights."""
    from pipelines.nightly.review.checked_labels import add_labels

    added = add_labels(output, file, date=date, model=model, new_classes=new_class)
    terminal.show_result(added, as_json, print_added)


@app.command(cls=PipelinesCommand)
def show(output: Output, model: AnyName = None, as_json: AsJson = False) -> None:
    """Print the accuracy of the nights that were checked."""
    from pipelines.nightly.review.checked_labels import list_scores
    from pipelines.nightly.tables.night_tables import NightTables
    from pipelines.storage.object_store import Store

    scores = list_scores(NightTables(Store(output)), model)
    if not scores and not as_json:
        terminal.say(f"{output} has no labels; `spin review` draws documents, `spin labels add` takes their labels")
    terminal.show_result(scores, as_json, print_scores)


@app.command(cls=PipelinesCommand)
def export(
    settings: File,
    output: Output,
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="Parquet file to write; a new one")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="NAME", help="registered name; default: the only one with labels, else mlflow.model"
        ),
    ] = None,
    set: Set = [],  # noqa: B006
) -> None:
    """Write the labelled documents of the nights with their texts, as training data.

    Only documents that were drawn at random may validate and test, as the column of splits says.
    """
    from pipelines.nightly.review.labelled_texts import export_labels

    check_new(to)
    loaded = load_settings(settings, set)
    written, lost = export_labels(loaded, output, to, model=model)
    lines = [f"wrote {counted(written, 'labelled document')} to {to}"]
    if loaded.data.split is None:
        lines.append("set data.split: split, so that only documents drawn at random validate and test")
    if lost:
        lines.append(f"the input of {lost:,} more is not there any more")
    terminal.say_about("labels", lines)


def print_added(added: AddedLabels) -> None:
    """Print what was added of a file, and the accuracy of the nights that predicted its documents."""
    lines = [f"{added.added:,} added, {counted(added.empty, 'row')} without a label"]
    if added.unknown:
        lines.append(f"{added.unknown:,} of documents to which no published night gave a label")
    if added.foreign:
        lines.append(f"classes that the model does not have, whose labels count as wrong: {', '.join(added.foreign)}")
    terminal.say_about("labels", lines)
    print_scores(added.nights)


def print_scores(scores: Sequence[ScoredNight]) -> None:
    """Print a row per night whose labels people have checked: its accuracy, by scores and checked labels."""
    if not scores:
        return
    table = terminal.new_table(["night", "model"], ["right", "accuracy"])
    for score in scores:
        model, right = f"{score.model} {score.model_version}".strip(), f"{score.right:,} of {score.checked:,}"
        table.add_row(score.date, model, right, format_estimate(score.accuracy))
    terminal.show(table)
