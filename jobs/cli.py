"""The `spin` command: parse, call one pipeline function, set the exit status."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs import job_commands, plan_command, registry_commands, terminal
from jobs.options import File, Input, Model, Restart, Set, open_registry
from spin.errors import SpinError, UserError
from spin.settings import Settings, load_settings

app = typer.Typer(
    name="spin",
    help="Classify text with the salient inner neurons of a frozen language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def options(
    log: Annotated[
        str, typer.Option(metavar="auto|json", help="json: progress as JSON lines on a terminal too")
    ] = "auto",
) -> None:
    """Classify text with the salient inner neurons of a frozen language model."""
    from pipelines.workers.progress import log_as_json

    if log not in ("auto", "json"):
        raise UserError(f"--log {log}: expected auto or json")
    if log == "json":
        log_as_json()


@app.command()
def init(path: Annotated[Path, typer.Argument(metavar="SETTINGS")]) -> None:
    """Write a commented settings file."""
    from jobs.settings_template import settings_template

    if path.exists():
        raise UserError(f"{path} is there already; name another file, or delete it")
    try:
        path.write_text(settings_template(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    terminal.say(f"wrote {path}; set backbone.model, data.train and store, then: spin run {path}")


@app.command()
def run(settings: File, set: Set = [], restart: Restart = False) -> None:  # noqa: B006
    """Extract, probe, train and register."""
    from pipelines.training.workflow import run_road

    loaded = load_settings(settings, set)
    terminal.trained(run_road(loaded, restart=restart, say=terminal.stage))


@app.command()
def extract(settings: File, set: Set = [], restart: Restart = False) -> None:  # noqa: B006
    """Read the corpus: pooled activations of every site, to the store."""
    from pipelines.training.workflow import run_stages

    run_stages(load_settings(settings, set), ["extract"], restart=restart, say=terminal.stage)


@app.command()
def probe(settings: File, set: Set = [], restart: Restart = False) -> None:  # noqa: B006
    """Fit one L1 regularisation path a site.pooling."""
    from pipelines.training.workflow import run_stages

    run_stages(load_settings(settings, set), ["probe"], restart=restart, say=terminal.stage)


@app.command()
def train(settings: File, set: Set = [], restart: Restart = False) -> None:  # noqa: B006
    """Integrate the salient neurons, evaluate on the test rows, register as challenger."""
    from pipelines.training.workflow import run_stages

    terminal.trained(run_stages(load_settings(settings, set), ["train"], restart=restart, say=terminal.stage))


@app.command()
def classify(
    settings: File,
    input: Input,
    output: Annotated[str, typer.Option(metavar="URI", help="folder or s3:// prefix of the nights")],
    model: Model = None,
    shadow: Annotated[
        str | None,
        typer.Option(
            metavar="ALIAS|models:/NAME/N", help="score it beside the model: agreement and disagreements, no more"
        ),
    ] = None,
    date: Annotated[str | None, typer.Option(metavar="YYYY-MM-DD", help="the night; by default today in UTC")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="URI", help="an output whose latest night has taken some files: skip these")
    ] = None,
    check: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="compare labels of N documents with those of float32")
    ] = None,
    set: Set = [],  # noqa: B006
    restart: Restart = False,
) -> None:
    """Classify a batch: predictions, dead letters and a manifest."""
    from pipelines.nightly.classify import run_classify
    from pipelines.nightly.drift_check import check_drift

    loaded = load_settings(settings, set)
    given: dict[str, Any] = {"model": model, "shadow": shadow, "night": date, "since": since, "restart": restart}
    registry = open_registry(loaded)
    manifest = run_classify(loaded, registry, input, output, **given)
    terminal.night(manifest, output)
    if check is not None:
        from pipelines.nightly.precision_check import check_precision

        terminal.check(*check_precision(loaded, registry, manifest, check))
    if shadow is not None and "shadow" not in manifest:
        terminal.say(
            f"          no shadow: {shadow} is version {manifest['model_version']}, the model of the night itself"
        )
    if loaded.classify.fail_on_drift:
        check_drift(manifest)


@app.command()
def evaluate(settings: File, input: Input, model: Model = None, set: Set = []) -> None:  # noqa: B006
    """Figures per class on any labelled file."""
    from pipelines.training.evaluate import run_evaluate

    loaded = load_settings(settings, set)
    terminal.evaluation(run_evaluate(loaded, open_registry(loaded), input, model=model))


app.command()(plan_command.plan)
_CHAMPION = (registry_commands.promote, registry_commands.rollback, registry_commands.history, registry_commands.models)
_REMOTE = (job_commands.jobs, job_commands.logs, job_commands.stop)
app.command(context_settings=job_commands.PASSING_ON)(job_commands.submit)
_command: Callable[..., None]
for _command in (*_REMOTE, *_CHAMPION):
    app.command()(_command)


@app.command()
def neurons(
    settings: File,
    model: Model = None,
    top: Annotated[int, typer.Option(min=1, help="how many")] = 20,
    label: Annotated[str | None, typer.Option("--class", metavar="CLASS", help="those that speak for it")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, with all their top documents")] = False,
    set: Set = [],  # noqa: B006
) -> None:
    """List the selected neurons, by importance in their probe times slope in the head, and what drives them."""
    from pipelines.training.neurons import load_neurons

    loaded = load_settings(settings, set)
    registry = open_registry(loaded)
    rows = load_neurons(registry, registry.resolve(model), loaded.choose)
    known = sorted({row["class"] for row in rows})
    if label is not None and label not in known:
        raise UserError(f"no neuron speaks for '{label}'; expected one of {', '.join(known)}")
    chosen = [row for row in rows if label in (None, row["class"])]
    if as_json:
        terminal.plain(chosen[:top])
    else:
        terminal.neurons(chosen[:top], _drivers(chosen[:top], loaded), len(chosen))


@app.command()
def explain(
    settings: File,
    text: Annotated[str, typer.Option(help="the text to explain")],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="also write a page")] = None,
    model: Model = None,
    set: Set = [],  # noqa: B006
) -> None:
    """Show which words and which neurons spoke for the class of a text."""
    if html is not None:
        _check_file(html)
    loaded = load_settings(settings, set)
    registry = open_registry(loaded)
    number = registry.resolve(model)
    found = registry.load(number).explain(text)
    terminal.explanation(found)
    if html is not None:
        from pipelines.training.neurons import load_neurons
        from spin.pages.explanation_page import explanation_page, shown_neurons

        wanted = shown_neurons(found)
        rows = [r for r in load_neurons(registry, number, loaded.choose) if (r["column"], r["neuron"]) in wanted]
        written = explanation_page(found, _drivers(rows, loaded), title=f"{registry.name}, version {number}")
        try:
            html.write_text(written, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{html} cannot be written: {error.strerror}") from None
        terminal.say(f"wrote {html}")


@app.command()
def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="folder of a saved classifier, models:/NAME@ALIAS or models:/NAME/N")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="new or empty")],
    format: Annotated[str, typer.Option(metavar="onnx|openvino")],
    settings: Annotated[
        str | None,
        typer.Option(metavar="SETTINGS", help="the registry, backbone, choice and thresholds; by default the model's"),
    ] = None,
    set: Set = [],  # noqa: B006
) -> None:
    """Write a model as one graph that runs without torch: token ids in, scores out."""
    from pipelines.registry.open_model import opened
    from spin.export import check
    from spin.export import export as write

    if set and settings is None:
        raise UserError(f"--set {set[0]}: there are no settings to override; name a file with --settings")
    check(folder, format)
    with opened(model, load_settings(settings, set) if settings is not None else None) as spin:
        files = write(spin, folder, format)
        size = f"{len(spin.fitted.selection):,} neurons of {spin.depth} blocks"
    terminal.say(f"wrote {folder}: {', '.join(files)}; {size}")


@app.command()
def quickstart(
    folder: Annotated[Path, typer.Option(help="where everything is kept")] = Path("runs/quickstart"),
    full: Annotated[bool, typer.Option("--full", help="all documents, not 12,000")] = False,
) -> None:
    """Take real text through every stage, on this machine."""
    from jobs.quickstart import run_quickstart

    run_quickstart(folder, full=full)


def main() -> Any:
    """Run the command; an error of ours is one line and its exit status."""
    quiet()
    try:
        return app(standalone_mode=True)
    except SpinError as error:
        terminal.failure(str(error))
        sys.exit(error.status)
    except KeyboardInterrupt:
        terminal.failure("interrupted; run it again to resume")
        sys.exit(130)


def quiet() -> None:
    """What libraries print of their own has no place between our lines."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    warnings.simplefilter("ignore")


def _drivers(rows: Sequence[dict[str, Any]], settings: Settings) -> Any:
    """The documents behind the neurons; without the corpus none, which is said."""
    from pipelines.training.neurons import read_drivers

    try:
        return read_drivers(rows, settings)
    except UserError as error:
        terminal.say(f"without training documents: {error}")
        return {}


def _check_file(path: Path) -> None:
    """Before any work is spent on what could not be written."""
    if path.is_dir():
        raise UserError(f"{path} is a directory; name a file in it, such as {path / 'explanation.html'}")
    if not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: there is no directory {path.parent}; make it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"{path} cannot be written: permission denied; name another file")


if __name__ == "__main__":
    main()
