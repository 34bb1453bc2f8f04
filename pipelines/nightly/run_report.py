"""What a person reads of a night: `report.json`, and `report.html`, a page that stands by itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pipelines.nightly.throughput import pace
from spin.monitor.agreement import by_class, disagreements
from spin.pages.charts import signed
from spin.pages.html import Html, tag
from spin.pages.stylesheet import BASE, document

Manifest = Mapping[str, Any]

_BUCKETS = 60
_SLOWEST = 8
_CLASSES = 30
"""shown; a label with no document anywhere is not"""
_OFTEN = 12
"""disagreements with a shadow that are shown"""
_PROPERTIES = {
    "labels": "mix of labels",
    "scores": "largest probability of a document",
    "lengths": "tokens of a document",
    "unknown": "share of a document's tokens that the tokenizer does not know",
    "neurons": "means of the selected neurons",
}

_STYLE = f"""{BASE}
main, main > section {{ display: grid; gap: 1rem; grid-template-columns: minmax(0, 1fr); }}
.sum {{ display: flex; flex-wrap: wrap; gap: .75rem 2rem; color: var(--soft); }}
.sum b {{ display: block; color: var(--ink); font-size: 1.5rem; font-weight: 650; font-variant-numeric: tabular-nums; }}
.sum .sign {{ font-size: 1.5rem; }}
.well {{ color: var(--for); }} .warn {{ color: var(--against); font-weight: 650; }}
.pace svg {{ display: block; width: 100%; height: 9rem; border-bottom: 1px solid var(--soft); }}
.pace rect {{ fill: var(--for); }}
.ends {{ display: flex; justify-content: space-between; color: var(--soft); font-size: .8125rem; }}
table {{ width: 100%; font-size: .875rem; border-collapse: collapse; }}
td, th {{ padding: .375rem .75rem .375rem 0; vertical-align: top; text-align: left;
  border-top: 1px solid var(--line); }}
thead th {{ border: 0; font-size: .8125rem; white-space: nowrap; }} td.number, th.number {{ text-align: right; }}
td {{ overflow-wrap: anywhere; }} td:first-child {{ min-width: 8rem; }}
th[scope=row] {{ white-space: normal; }}
td.track {{ width: 40%; min-width: 6rem; padding-top: .5rem; }}
.now rect {{ fill: var(--for); }} .then rect {{ fill: var(--soft); }}
.track .bar {{ height: .5rem; margin-bottom: 2px; }}
"""


def render_reports(manifest: Manifest) -> dict[str, bytes]:
    """The reports of a night, by name."""
    short = {name: value for name, value in manifest.items() if name not in ("shards", "parts")}
    return {"report.json": json.dumps(short, indent=2).encode() + b"\n", "report.html": page(manifest).encode()}


def page(manifest: Manifest) -> str:
    """The HTML of a night's manifest: counts, throughput, labels, shadow, drift, dead letters and slowest shards."""
    title = f"{manifest['model']}, night of {manifest['date']}"
    about = f"version {manifest['model_version']} · run {manifest['run']} · {manifest['fingerprint'][:12]}"
    moved = ", ".join(_PROPERTIES[row["name"]] for row in manifest["drift"] if row["drifted"])
    warning = tag("p", f"Drifted from training: {moved}", class_="warn") if moved else ""
    heading = tag("header", tag("p", about, class_="eyebrow"), tag("h1", title), warning, class_="heading")
    sections = _counts, _pace, _labels, _shadow, _drift, _dead, _slowest
    main = tag("main", tag("section", *(section(manifest) for section in sections)))
    return document(title, _STYLE, heading, main)


def _section(heading: str, note: str | Html, *content: str) -> Html:
    return tag("section", tag("h2", heading), tag("p", note, class_="note"), *content)


def _counts(manifest: Manifest) -> Html:
    """Rows are predictions and dead letters, files are taken or quarantined."""
    counts = manifest["counts"]
    whole = tag(
        "p",
        _figure("documents", counts["rows"]),
        tag("span", "=", class_="sign"),
        _figure("predicted", counts["predicted"]),
        tag("span", "+", class_="sign"),
        _figure("dead letters", counts["dead"]),
        class_="sum",
    )
    files = len(manifest["inputs"]), len(manifest["quarantined"]), len(manifest["skipped"])
    more = [
        f"Of the files {files[0]:,} were taken, {files[1]:,} quarantined, {files[2]:,} skipped.",
        f"{counts['tokens']:,} tokens; {counts['truncated']:,} texts were cut at the backbone's limit.",
        f"{counts['abstained']:,} documents were given no label." if counts["abstained"] else "",
        " ".join(
            f"{n:,} documents left at block {depth}."
            for depth, n in sorted(counts["depths"].items(), key=lambda item: int(item[0]))
        ),
    ]
    return _section("Counts", " ".join(filter(None, more)), whole)


def _figure(name: str, count: int) -> Html:
    return tag("span", tag("b", f"{count:,}"), f" {name}")


def _pace(manifest: Manifest) -> Html:
    """Columns of documents a second over time."""
    computed = [shard for shard in manifest["shards"] if shard["rows"]]
    if not computed:
        return _section("Throughput", "No document was read.")
    rates, borders = pace(computed, _BUCKETS)
    top = float(rates.max()) or 1.0
    columns = [
        tag("rect", x=10 * i, width=9, y=round(100 - 100 * rate / top, 2), height=round(100 * rate / top, 2))
        for i, rate in enumerate(rates.tolist())
    ]
    picture = tag(
        "svg",
        *columns,
        viewBox=f"0 0 {10 * _BUCKETS} 100",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"documents a second over time, at most {top:,.0f}",
    )
    clock = [f"{datetime.fromtimestamp(float(at), UTC):%Y-%m-%d %H:%M:%S} UTC" for at in (borders[0], borders[-1])]
    ends = tag("p", *(tag("span", at) for at in clock), class_="ends")
    mean = manifest["counts"]["rows"] / max(manifest["seconds"], 1e-3)
    note = (
        f"{mean:,.1f} documents a second over {manifest['seconds']:,.1f} s of work; the highest column is {top:,.1f}. "
        "Pauses are those between a run and its resumption."
    )
    return _section("Throughput", note, tag("div", picture, ends, class_="pace"))


def _labels(manifest: Manifest) -> Html:
    """The share of each label tonight, the night before and in training."""
    columns = {"tonight": _mix(manifest["counts"])}
    before = manifest["before"]
    if before:
        columns[f"night of {before['date']}"] = _mix(before["counts"])
    trained = next((row["then"] for row in manifest["drift"] if row["name"] == "labels"), None)
    if trained:
        columns["reference"] = _shares(dict(zip([*manifest["classes"], ""], trained, strict=True)))
    mixes = list(columns.values())
    names = sorted({name for mix in mixes for name in mix if mix[name]}, key=lambda n: (-mixes[0].get(n, 0), n))
    rows = [
        tag(
            "tr",
            tag("th", tag("bdi", name) if name else "no label", scope="row"),
            tag("td", *(_bar(mix.get(name, 0), i == 0) for i, mix in enumerate(mixes)), class_="track"),
            *(tag("td", f"{100 * mix.get(name, 0):.1f} %", class_="number") for mix in mixes),
        )
        for name in names[:_CLASSES]
    ]
    more = f" {len(names) - _CLASSES:,} rarer labels are not shown." if len(names) > _CLASSES else ""
    note = (
        f"{', '.join(columns).capitalize()}, in this order; the reference is what the head says of the test documents "
        f"in training, before thresholds.{more}"
    )
    return _section("Labels", note, _table(("label", "", *(f"#{name}" for name in columns)), rows))


def _mix(counts: Mapping[str, Any]) -> dict[str, float]:
    return _shares({**counts["labels"], "": counts["unlabelled"]})


def _shares(counts: Mapping[str, int]) -> dict[str, float]:
    total = max(1, sum(counts.values()))
    return {name: count / total for name, count in counts.items()}


def _bar(share: float, now: bool) -> Html:
    filled = tag("rect", x=0, y=0, width=round(1000 * share, 2), height=10)
    kind = "now" if now else "then"
    return tag(
        "svg", filled, class_=f"bar {kind}", viewBox="0 0 1000 10", preserveAspectRatio="none", aria_hidden="true"
    )


def _shadow(manifest: Manifest) -> str:
    """Where another version says the same, by class, and what it says instead; nothing without one."""
    shadow = manifest.get("shadow")
    if shadow is None:
        return ""
    classes, odd = by_class(shadow), disagreements(shadow)
    missing = "not given" if shadow["multilabel"] else "no label"
    mine, theirs = (f"version {version}" for version in (manifest["model_version"], shadow["version"]))

    def name(label: str) -> str:
        return tag("bdi", label) if label else missing

    def row(*cells: str, figures: Sequence[str]) -> Html:
        return tag("tr", *(tag("td", c) for c in cells), *(tag("td", f, class_="number") for f in figures))

    share = f"{100 * shadow['agreement']:.1f} %" if shadow["compared"] else "none"
    note = [
        f"V{theirs[1:]} scored the same documents and decided nothing. It says the same of {share} of "
        f"{shadow['compared']:,}.",
        f"The other rows lie in disagreements/date={manifest['date']}." if odd else "",
        f"It could not score {shadow['failed']:,}." if shadow["failed"] else "",
        f"{len(classes) - _CLASSES:,} classes on which they differ less are not shown." * (len(classes) > _CLASSES),
    ]
    table = _table(
        ("class", f"#{mine}", f"#{theirs}", "#both"),
        [row(name(of[0]), figures=[f"{n:,}" for n in of[1:]]) for of in classes[:_CLASSES]],
    )
    instead = _table(
        (f"{mine} says", f"{theirs} says", "#documents"),
        [row(name(a), name(b), figures=[f"{n:,}"]) for a, b, n in odd[:_OFTEN]],
    )
    content = [table, *([tag("h3", "Most frequent disagreements"), instead] if odd else [])]
    return _section("Shadow", " ".join(filter(None, note)), *content)


def _drift(manifest: Manifest) -> Html:
    """Each property against the training reference, and the neurons that moved most."""
    found = manifest["drift"]
    if not found:
        return _section("Drift", "Nothing to compare: no document was predicted, or the model holds no reference.")
    rows = [
        tag(
            "tr",
            tag("th", _PROPERTIES[row["name"]], scope="row"),
            tag("td", f"{row['psi']:.3f}", class_="number"),
            tag("td", f"{row['limit']:.3f}", class_="number"),
            tag("td", *_verdict(row)),
        )
        for row in found
    ]
    table = _table(("property", "#stability index", "#limit", "verdict"), rows)
    neurons = next(row for row in found if row["name"] == "neurons")
    loud = [
        tag("tr", tag("td", tag("code", f"{n['column']}[{n['neuron']}]")), tag("td", f"{signed(n['shift'])} σ"))
        for n in neurons["moved"]
    ]
    note = (
        "Against the documents that the model was judged on in training. The limit is what the population stability "
        "index exceeds in one night of a hundred if the property had moved by just what classify.max_psi allows; "
        "for a neuron the index is the square of its mean's shift in standard deviations."
    )
    return _section("Drift", note, table, tag("h3", "Neurons that moved most"), _table(("neuron", "shift"), loud))


def _verdict(row: Mapping[str, Any]) -> list[str]:
    said = tag("span", "drifted" if row["drifted"] else "as in training", class_="warn" if row["drifted"] else "well")
    return [said, f", {row['now'][0]:,} of {sum(row['now']):,}"] if row["name"] == "neurons" else [said]


def _dead(manifest: Manifest) -> Html:
    """The reasons of dead letters, most frequent first, and what is wrong with quarantined files."""
    counts = manifest["counts"]
    if not counts["dead"] and not manifest["quarantined"]:
        return _section("Dead letters", "None; no file was quarantined.")
    reasons = sorted(counts["reasons"].items(), key=lambda item: (-item[1], item[0]))
    rows = [tag("tr", tag("td", name), tag("td", f"{count:,}", class_="number")) for name, count in reasons]
    files = [tag("tr", tag("td", file["uri"]), tag("td", file["reason"])) for file in manifest["quarantined"]]
    share = f"{100 * counts['dead'] / max(1, counts['rows']):.2f} % of the documents."
    content: list[str] = [_table(("reason", "#documents"), rows)] if rows else []
    content += [tag("h3", "Quarantined files"), _table(("file", "what is wrong"), files)] if files else []
    return _section("Dead letters", share, *content)


def _slowest(manifest: Manifest) -> Html:
    """The shards that took longest, and how often each was tried."""
    shards = sorted(enumerate(manifest["shards"]), key=lambda item: -item[1]["seconds"])[:_SLOWEST]
    figures: list[Callable[[Mapping[str, Any]], str]] = [
        lambda shard: f"{shard['rows']:,}",
        lambda shard: f"{shard['seconds']:,.1f}",
        lambda shard: f"{shard['rows'] / max(shard['seconds'], 1e-3):,.1f}",
        lambda shard: f"{shard['tries']:,}",
    ]
    rows = [
        tag(
            "tr",
            tag("td", tag("code", f"{number:06d}"), f" {shard['uri']}"),
            *(tag("td", figure(shard), class_="number") for figure in figures),
        )
        for number, shard in shards
    ]
    heads = ("shard", "#documents", "#seconds", "#a second", "#tries")
    return _section("Slowest shards", f"Of {len(manifest['shards']):,}.", _table(heads, rows))


def _table(heads: Sequence[str], rows: Sequence[Html]) -> Html:
    """Heads that begin with # stand over figures."""
    cells = [
        tag("th", head.removeprefix("#"), scope="col", class_="number" if head.startswith("#") else None)
        for head in heads
    ]
    table = tag("table", tag("thead", tag("tr", *cells)), tag("tbody", *rows))
    return tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=heads[0])
