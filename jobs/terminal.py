"""What a person sees of a result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from spin.sites import FeatureColumn

if TYPE_CHECKING:
    from spin.monitor.agreement import ShadowAgreement
    from spin.pages.explanation import Explanation
    from spin.pages.explanation_page import Drivers

_BEGINNING = 80
"""characters shown of a training document"""
_DISAGREEMENTS = 3
"""shown of those between a model and its shadow"""
_CHOICES = ("accuracy", "balanced", "cheapest")

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
    """What accuracy costs, the table, and where the classifier was registered."""
    out.print(_frontier(manifest["choice"]))
    for name in _CHOICES:
        say(f"{name:<9} {_choice(manifest['choice']['choices'][name])}")
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
    for file in manifest["quarantined"]:
        say(f"          quarantined: {file['reason']}")
    if counts["dead"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts["reasons"].items()))
        say(f"          {counts['dead']:,} dead letters: {reasons}")
    if counts.get("abstained"):
        say(f"          {counts['abstained']:,} documents without a label, within decision.abstain of a border")
    if counts["truncated"]:
        share = 100 * counts["truncated_share"]
        say(f"          {counts['truncated']:,} texts ({share:.1f} %) cut at backbone.max_tokens")
    if len(counts["depths"]) > 1:
        left = (f"block {at} {n:,}" for at, n in sorted(counts["depths"].items(), key=lambda item: int(item[0])))
        say(f"          left after {', '.join(left)}")
    for row in manifest["drift"]:
        if row["drifted"]:
            say(f"          drift: {row['name']} stability index {row['psi']:.2f}, above {row['limit']:.2f}")
    if "shadow" in manifest:
        say(f"          {_shadow(ShadowAgreement.from_json(manifest['shadow']))}")
    where = output.rstrip("/")
    say(f"          predictions in {where}/predictions, the report in {where}/_runs/{manifest['run']}/report.html")


def check(compared: int, agreed: int) -> None:
    """How many labels of a night float32 gives too."""
    say(f"check     {agreed:,} of {compared:,} labels ({100 * agreed / compared:.2f} %) are those of float32")


def _shadow(shadow: ShadowAgreement) -> str:
    """Return on how many documents the shadow agrees, and the most frequent disagreements."""
    pairs, counts = shadow.disagreements(), shadow.counts
    missing = "not given" if shadow.multilabel else "no label"
    listed = ", ".join(
        f"{pair.model_label or missing} → {pair.shadow_label or missing} {pair.documents:,}"
        for pair in pairs[:_DISAGREEMENTS]
    )
    share = "none" if shadow.agreement is None else f"{100 * shadow.agreement:.1f} %"
    failed = f", failed on {counts.failed:,}" if counts.failed else ""
    return (
        f"shadow version {shadow.version} agrees on {share} of {counts.compared:,} documents{failed}"
        + (f": {listed}" if listed else "")
        + (", …" if len(pairs) > _DISAGREEMENTS else "")
    )


def evaluation(found: dict[str, Any]) -> None:
    """Every metric, and the figures of every class."""
    table = _columns("class", "precision", "recall", "F1", "documents")
    for name, figures in found["per_class"].items():
        shown = [f"{100 * figures[f]:.1f}" for f in ("precision", "recall", "f1")]
        table.add_row(escape(name), *shown, f"{figures['support']:,.0f}")
    out.print(table)
    metrics = ", ".join(f"{name} {100 * value:.1f}" for name, value in found["metrics"].items())
    say(f"version {found['model_version']} on {found['documents']:,} documents: {metrics}")


def gate(checks: Sequence[Any]) -> None:
    """A row a check; below, what to do about those that failed."""
    table = Table("check", "found", "expected", "")
    for check in checks:
        mark = "[green]passed[/green]" if check.passed else "[red]failed[/red]"
        table.add_row(check.name, escape(check.found), escape(check.expected), mark)
    out.print(table)
    for check in checks:
        if not check.passed:
            say(f"{check.name}: {check.remedy}")


def moved(name: str, event: dict[str, Any]) -> None:
    before = f" in place of version {event['from']}" if event["from"] else ""
    figure = f", {100 * event['score']:.1f} on the frozen evaluation set" if event.get("score") is not None else ""
    forced = f", forced although these failed: {', '.join(event['forced'])}" if event.get("forced") else ""
    say(f"{name} version {event['to']} is champion{before}{figure}{forced}")


def models(name: str, versions: Sequence[Any]) -> None:
    """The versions, newest first."""
    if not versions:
        say(f"{name} has no versions; `spin train` registers one")
        return
    table = Table("version", "aliases", "made", "figures", "fingerprint")
    for version in versions:
        figures = ", ".join(f"{k} {v:.4f}" for k, v in sorted(version.metrics.items()))
        table.add_row(version.number, ", ".join(version.aliases), version.created, figures, version.fingerprint[:12])
    out.print(table)


def history(name: str, events: Sequence[dict[str, Any]]) -> None:
    """The moves of the champion, a line each, oldest first."""
    if not events:
        say(f"{name} has had no champion; `spin promote` makes one")
    for event in events:
        forced = f" --force ({', '.join(event['forced'])})" if event.get("forced") else ""
        why = f": {event['why']}" if event["why"] else ""
        moved = f"{event['move']}{forced} from {event['from'] or 'none'} to {event['to']}"
        say(f"{event['when']} {event['who']} {moved}, run {event['run']}{why}")


def explanation(found: Explanation, *, neurons: int = 8) -> None:
    """For each predicted class, else the likeliest, the words shaded by what they added and the loudest neurons."""
    shares = zip(found.classes, found.probabilities, found.logits, strict=True)
    listed = ", ".join(f"{name} {share:.2f} (logit {logit:+.2f})" for name, share, logit in shares)
    say(f"{', '.join(found.classes[k] for k in found.chosen) or 'no class reaches one half'}: {listed}")
    for k in found.chosen or found.ranked[:1]:
        label = found.classes[k]
        out.print(_shaded(found, k), soft_wrap=True)
        table = Table("neuron", "adds", "loudest on", title=f"what spoke for and against {escape(label)}")
        table.columns[1].justify = "right"
        for top in found.top(neurons, label):
            table.add_row(f"{top.column}[{top.neuron}]", f"{top.contribution:+.3f}", escape(top.word))
        out.print(table)


def _shaded(found: Explanation, k: int) -> Text:
    """The text with each word in the shade of what it adds to class k."""
    from spin.pages.explanation import stretches

    parts = stretches(found.words)
    values = [float(found.word_contributions[words, k].sum()) for _, _, words in parts]
    largest = max([1e-9, *map(abs, values)])
    line, last = Text(), 0
    for (start, end, _), value in zip(parts, values, strict=True):
        line.append(found.text[last:start])
        line.append(found.text[start:end], _shade(value / largest))
        last = end
    return line.append(found.text[last:])


def neurons(rows: Sequence[dict[str, Any]], drivers: Drivers, count: int) -> None:
    """A line a neuron: its probe's importance, the class it speaks for, and the document on which it is highest."""
    table = Table(expand=True)
    table.add_column("neuron", no_wrap=True)
    for name in ("importance", "slope"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("speaks for", max_width=20, overflow="fold")
    table.add_column("highest on", no_wrap=True, overflow="ellipsis", ratio=1)
    for row in rows:
        best = next(iter(drivers.get((FeatureColumn.parse(row["column"]), row["neuron"]), ())), None)
        text = "–" if best is None else f"{best.value:+.1f} σ  {' '.join(best.text.split())[:_BEGINNING]}"
        figures = f"{100 * row['importance']:.1f} %", f"{row['slope']:+.3f}"
        table.add_row(f"{row['column']}[{row['neuron']}]", *figures, escape(row["class"]), escape(text))
    out.print(table)
    say(
        f"{len(rows):,} of {count:,} neurons, by importance (in the probe of its column) times slope "
        "(what a standard deviation adds to the logit of the class)"
    )


def jobs(found: Sequence[Any]) -> None:
    """The jobs of a cluster, the newest first."""
    if not found:
        say("no jobs; `spin submit` starts one")
        return
    table = _columns("job", "seconds", "exit")
    for name in ("status", "started (UTC)"):
        table.add_column(name, no_wrap=True)
    for job in found:
        shown = ("" if value is None else f"{value:.0f}" for value in (job.seconds, job.exit_status))
        table.add_row(escape(job.id), *shown, job.status.lower(), job.started)
    out.print(table)


def raw(text: str) -> None:
    """What another process has printed, as it is."""
    out.file.write(text)
    out.file.flush()


def plain(value: Any) -> None:
    """JSON, for a program."""
    out.out(json.dumps(value, indent=2, ensure_ascii=False))


def spoken(found: Explanation, count: int = 3) -> str:
    """The neurons that spoke most for the predicted class, in a line."""
    tops = [top for top in found.top(4 * count) if top.contribution > 0][:count]
    return ", ".join(f"{top.column}[{top.neuron}] {top.contribution:+.2f} on “{top.word}”" for top in tops)


def _extracted(counts: dict[str, Any]) -> str:
    share = 100 * counts["truncated_share"]
    cut = f", {counts['truncated']:,} ({share:.1f} %) cut at max_tokens" if counts["truncated"] else ""
    return f"{counts['rows']:,} documents, {counts['tokens']:,} tokens{cut}"


def _chosen(manifest: dict[str, Any]) -> str:
    choice = manifest["choice"]["choices"][manifest["choose"]]
    l1 = f", L1 {choice['l1']:g}" if choice["l1"] else ""
    return (
        f"{choice['neurons']:,} neurons of {choice['depth']} blocks, eta {choice['eta']:.2f}, {choice['head']} head, "
        f"strength {choice['strength']:g}{l1}"
    )


def _choice(facts: Mapping[str, Any]) -> str:
    """A choice's own point, which need not be the best of its depth."""
    what = f" ({' and '.join(facts['part'])} only)" if facts["part"] else ""
    left = [f"{100 * of['valid_share']:.0f} % leave after block {of['depth']}" for of in facts.get("exits", [])]
    return (
        f"{100 * facts['valid_score']:.1f} on validation, {100 * facts['compute']:.0f} % of the compute, "
        f"{facts['neurons']:,} neurons of {facts['depth']} blocks{what}" + "".join(f"; {part}" for part in left)
    )


def _frontier(choice: Mapping[str, Any]) -> Table:
    """The best candidate of every depth on the validation rows; a choice is marked at the depth that it reads."""
    table = _columns("depth", "compute", "neurons", "eta", "validation")
    table.add_column("choice")
    for point in choice["frontier"]:
        here = [name for name in _CHOICES if choice["choices"][name]["depth"] == point["depth"]]
        table.add_row(
            str(point["depth"]),
            f"{100 * point['compute']:.0f} %",
            f"{point['neurons']:,}",
            f"{point['eta']:.2f}",
            f"{100 * point['valid_score']:.1f}",
            ", ".join(here),
        )
    return table


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = _columns("", "accuracy", "macro-F1", "neurons", "depth", "docs/s")
    for row in rows:
        share = row["neurons"] / row["neurons_of"]
        table.add_row(
            row["name"],
            f"{100 * row['accuracy']:.1f}",
            f"{100 * row['macro_f1']:.1f}",
            f"{row['neurons']:,} ({100 * share:.1f} %)" if row["neurons"] else "–",
            f"{row['depth']} of {row['depth_of']}",
            f"{row['docs_per_s']:,.0f}",
        )
    return table


def _columns(first: str, *figures: str) -> Table:
    """A table of names and figures; no cell is wrapped."""
    table = Table()
    table.add_column(first, no_wrap=True)
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
