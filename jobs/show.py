"""What a person sees of a result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from spin.explain import Explanation

out = Console(highlight=False)
_err = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """A line as it is, wrapped by the terminal and not by us, so that it can be copied."""
    out.print(escape(text), soft_wrap=True)


def failure(text: str) -> None:
    """An error in one line on standard error."""
    _err.print(f"[red]error:[/red] {escape(' '.join(text.split()))}", soft_wrap=True)


def stage(name: str, manifest: dict[str, Any], seconds: float, resumed: bool) -> None:
    """A line when a stage ends: what it made, or that it had ended before."""
    what = {
        "extract": lambda: _extracted(manifest["counts"]),
        "probe": lambda: f"{len(manifest['probes'])} probes of {len(manifest['classes'])} classes",
        "train": lambda: _chosen(manifest),
    }[name]()
    say(f"{name:<9} {what}" + (" — finished before" if resumed else f" — {seconds:.0f} s"))


def trained(manifest: dict[str, Any]) -> None:
    """The table, and where the classifier was registered."""
    if manifest["table"]:
        out.print(_table(manifest["table"]))
    registered = manifest["registered"]
    say(f"registered {registered['model']} version {registered['version']} as challenger")


def night(manifest: dict[str, Any], output: str) -> None:
    """The counts of a night and where its rows are."""
    counts = manifest["counts"]
    mix = ", ".join(f"{label} {count:,}" for label, count in sorted(counts["labels"].items()))
    share = f"{counts['predicted']:,} of {counts['rows']:,} documents"
    say(f"classify  {share} by version {manifest['model_version']}: {mix}")
    if counts["dead"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts["reasons"].items()))
        say(f"          {counts['dead']:,} dead letters: {reasons}")
    if counts["truncated"]:
        share = 100 * counts["truncated_share"]
        say(f"          {counts['truncated']:,} texts ({share:.1f} %) cut at backbone.max_tokens")
    say(f"          predictions in {output.rstrip('/')}/predictions")


def evaluation(found: dict[str, Any]) -> None:
    """Every metric, and the figures of every class."""
    table = _columns("class", "precision", "recall", "F1", "documents")
    for name, figures in found["per_class"].items():
        shown = [f"{100 * figures[f]:.1f}" for f in ("precision", "recall", "f1")]
        table.add_row(escape(name), *shown, f"{figures['support']:,.0f}")
    out.print(table)
    metrics = ", ".join(f"{name} {100 * value:.1f}" for name, value in found["metrics"].items())
    say(f"version {found['model_version']} on {found['documents']:,} documents: {metrics}")


def moved(name: str, event: dict[str, Any]) -> None:
    before = f" in place of version {event['from']}" if event["from"] else ""
    figure = f", {100 * event['score']:.1f} on the frozen evaluation set" if event.get("score") is not None else ""
    say(f"{name} version {event['to']} is champion{before}{figure}")


def models(name: str, versions: Sequence[Any], history: Sequence[dict[str, Any]]) -> None:
    """The versions, newest first, and the moves of the champion, oldest first."""
    if not versions:
        say(f"{name} has no versions; `spin train` registers one")
        return
    table = Table("version", "aliases", "made", "figures", "fingerprint")
    for version in versions:
        figures = ", ".join(f"{k} {v:.4f}" for k, v in sorted(version.metrics.items()))
        table.add_row(version.number, ", ".join(version.aliases), version.created, figures, version.fingerprint[:12])
    out.print(table)
    for event in history:
        why = f": {event['why']}" if event["why"] else ""
        say(f"{event['when']} {event['who']} moved champion from {event['from'] or 'none'} to {event['to']}{why}")


def explanation(found: Explanation, *, neurons: int = 8) -> None:
    """The words shaded by what they added to the predicted class, and the neurons that weighed most."""
    label = found.label
    by_word = found.word_contributions[:, found.classes.index(label)]
    largest = max(abs(by_word).max(), 1e-9)
    line, last = Text(), 0
    for (start, end), value in zip(found.words, by_word, strict=True):
        line.append(found.text[last:start])
        line.append(found.text[start:end], _shade(value / largest))
        last = max(last, end)
    line.append(found.text[last:])
    scores = ", ".join(f"{name} {value:+.2f}" for name, value in zip(found.classes, found.logits, strict=True))
    say(f"{label}  (logits: {scores})")
    out.print(line, soft_wrap=True)
    table = Table("neuron", "adds", "loudest on", title=f"what spoke for and against {escape(label)}")
    table.columns[1].justify = "right"
    for top in found.top(neurons):
        table.add_row(f"{top.column}[{top.neuron}]", f"{top.contribution:+.3f}", escape(top.word))
    out.print(table)


def spoken(found: Explanation, count: int = 3) -> str:
    """The neurons that spoke most for the predicted class, in a line."""
    tops = [top for top in found.top(4 * count) if top.contribution > 0][:count]
    return ", ".join(f"{top.column}[{top.neuron}] {top.contribution:+.2f} on “{top.word}”" for top in tops)


def _extracted(counts: dict[str, Any]) -> str:
    share = 100 * counts["truncated_share"]
    cut = f", {counts['truncated']:,} ({share:.1f} %) cut at max_tokens" if counts["truncated"] else ""
    return f"{counts['rows']:,} documents, {counts['tokens']:,} tokens{cut}"


def _chosen(manifest: dict[str, Any]) -> str:
    choice = manifest["choice"]
    return f"{choice['neurons']:,} neurons of {choice['depth']} blocks, eta {choice['eta']}, C {choice['strength']:g}"


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = _columns("", "accuracy", "macro-F1", "neurons used", "depth", "docs/s")
    for row in rows:
        share = row["neurons"] / row["neurons_of"]
        table.add_row(
            row["name"],
            f"{100 * row['accuracy']:.1f}",
            f"{100 * row['macro_f1']:.1f}",
            f"{row['neurons']:,} of {row['neurons_of']:,} ({100 * share:.1f} %)" if row["neurons"] else "–",
            f"{row['depth']} of {row['depth_of']}",
            f"{row['docs_per_s']:,.0f}",
        )
    return table


def _columns(first: str, *figures: str) -> Table:
    """A table of names and figures; no cell is wrapped."""
    table = Table(first)
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _shade(share: float) -> str:
    """Green for, red against, stronger for more."""
    if abs(share) < 0.15:
        return ""
    strength = int(60 + 140 * min(1.0, abs(share)))
    colour = (0, strength, 0) if share > 0 else (strength, 0, 0)
    return f"white on rgb({colour[0]},{colour[1]},{colour[2]})"
