"""How a page of SPIN looks: its colours, its style sheets and the policy that lets nothing else in."""

from __future__ import annotations

import base64
import hashlib

from spin.pages.html import Html, tag

STEPS = 10
"""strengths of shade for each sign"""
SWITCHABLE = 12
"""classes that can be chosen on a page"""

# blue for and orange against differ for every kind of colour blindness; text stays legible on the strongest shade
_LIGHT = {"paper": (255, 255, 255), "for": (92, 172, 226), "against": (245, 158, 76)}
_DARK = {"paper": (27, 31, 38), "for": (29, 103, 160), "against": (160, 84, 18)}

BASE = """
:root { color-scheme: light dark; --desk: #f4f5f7; --paper: #fff; --ink: #16191f; --soft: #59616e; --line: #dfe3e8;
  --for: #0b6aa8; --against: #b4520b; --accent: #16191f; --chip: #eceff3;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  --serif: Charter, "Bitstream Charter", "Iowan Old Style", Georgia, "Noto Serif", serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
* { box-sizing: border-box; }
body { margin: 0; padding: 2.5rem 1.5rem 4rem; background: var(--desk); color: var(--ink);
  font: 1rem/1.5 var(--sans); -webkit-text-size-adjust: 100%; print-color-adjust: exact; }
.page { max-width: 72rem; margin: auto; display: grid; gap: 1.5rem; grid-template-columns: minmax(0, 1fr); }
h1, h2, h3, p, ol, fieldset, figure, blockquote { margin: 0; padding: 0; }
bdi, .eyebrow, .text, blockquote { overflow-wrap: anywhere; }
.eyebrow, legend { color: var(--soft); font-size: .875rem; }
h1 { font-size: clamp(1.75rem, 5vw, 2.5rem); line-height: 1.15; font-weight: 650; letter-spacing: -.015em; }
h1 { display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; } h1 > span { min-width: 0; }
h1 .share { color: var(--soft); font-weight: 400; white-space: nowrap; }
h2 { font-size: 1.25rem; line-height: 1.3; font-weight: 650; }
h3 { font-size: 1rem; font-weight: 650; }
section section, .classes, .heading { background: var(--paper); border: 1px solid var(--line); border-radius: .75rem;
  padding: 1.25rem 1.5rem; }
.heading { background: none; border: 0; padding: 0; }
.panel { display: none; gap: 1rem; grid-template-columns: minmax(0, 1fr); }
section section { display: grid; gap: .75rem; grid-template-columns: minmax(0, 1fr); }
.note { color: var(--soft); font-size: .875rem; max-width: 46rem; text-wrap: pretty; }
.number { font-variant-numeric: tabular-nums; text-align: right; white-space: nowrap; }
code { font: .875em var(--mono); }

.scroll { overflow-x: auto; overscroll-behavior-x: contain; margin: 0 -1.5rem; padding: 0 1.5rem; }
.scroll:focus-visible { outline: 2px solid var(--for); outline-offset: -2px; }
table { border-collapse: separate; border-spacing: 2px; font-size: .8125rem; font-variant-numeric: tabular-nums; }
th { font-weight: 500; color: var(--soft); text-align: center; padding: 0 .25rem; }
th[scope=row] { text-align: left; white-space: nowrap; padding-right: .75rem; background: var(--paper); }
.bar { display: block; width: 100%; height: .75rem; }
.bar line { stroke: var(--soft); stroke-width: 1; vector-effect: non-scaling-stroke; }
.bar rect { fill: var(--accent); } .bar.for rect { fill: var(--for); } .bar.against rect { fill: var(--against); }

@media (prefers-color-scheme: dark) {
  :root { --desk: #12151a; --paper: #1b1f26; --ink: #e9ebef; --soft: #a0a8b4; --line: #333a45; --for: #62b4ee;
    --against: #f0984a; --accent: #e9ebef; --chip: #2b313b; }
}
"""
"""colours, type, cards, tables and bars of every page"""

_EXPLANATION = """
.classes fieldset { border: 0; min-width: 0; }
.classes legend { padding: 0 0 .5rem; display: flex; justify-content: space-between; width: 100%; }
.class { display: grid; grid-template-columns: minmax(0, 1fr) 3.5rem 3.75rem; gap: 0 .5rem; align-items: baseline;
  font-size: .9375rem;
  padding: .5rem .625rem; margin: 0 -.625rem; border-radius: .5rem; }
label.class { cursor: pointer; }
label.class:hover { background: var(--desk); }
.class:has(:checked) { background: var(--chip); font-weight: 600; }
.class:has(:focus-visible) { outline: 2px solid var(--for); outline-offset: -2px; }
.class input { position: absolute; opacity: 0; pointer-events: none; }
.class .bar { grid-column: 1 / -1; height: .25rem; margin-top: .375rem; border-radius: 1rem; background: var(--line); }
.class .bar rect { fill: var(--accent); }
.classes details { margin-top: .5rem; }
.classes summary { cursor: pointer; color: var(--soft); font-size: .875rem; }

.text { font: 1.1875rem/1.75 var(--serif); tab-size: 4; max-width: 46rem; }
.text, blockquote { white-space: pre-wrap; unicode-bidi: plaintext; }
.word { border-radius: .2em; padding: .1em 0; -webkit-box-decoration-break: clone; box-decoration-break: clone; }
.unread { color: var(--soft); }
.scale { display: flex; align-items: center; gap: .625rem; font-size: .8125rem; color: var(--soft);
  white-space: nowrap; }
.ramp { display: flex; flex: 0 1 12rem; border-radius: .25rem; overflow: hidden; border: 1px solid var(--line); }
.ramp i { flex: 1; height: .75rem; }
.strongest { display: grid; grid-template-columns: auto minmax(0, 1fr); gap: .25rem .75rem; font-size: .9375rem;
  margin: 0; }
.strongest dt { color: var(--soft); } .strongest dd { margin: 0; display: flex; flex-wrap: wrap; gap: 0 1rem; }

.map { min-width: min(100%, 46rem); }
.map th[scope=row] { position: sticky; left: -1.5rem; z-index: 1; padding-left: 0; box-shadow: 2px 0 var(--paper); }
.map td { min-width: 3.125rem; height: 2.25rem; text-align: center; border-radius: .25rem; }
.map .empty { color: var(--soft); }
.map .sums td { border-top: 1px solid var(--line); border-radius: 0; }
.falls { width: 100%; max-width: 46rem; font-size: .875rem; }
.falls td.track { width: 100%; padding: 0 .5rem; }
.falls .bar { height: 1rem; }
.falls .total th, .falls .total td { color: var(--ink); font-weight: 650; border-top: 1px solid var(--line);
  padding-top: .25rem; }
.plus { color: var(--for); } .minus { color: var(--against); }

.neurons { list-style: none; font-size: .9375rem; }
.neurons > li { border-top: 1px solid var(--line); }
.neurons > li.head { border: 0; color: var(--soft); font-size: .8125rem; }
.row { display: grid; grid-template-columns: 1rem 11rem minmax(4rem, 1fr) 4.5rem minmax(0, 10rem); gap: 0 .75rem;
  align-items: center; padding: .5rem 0; }
.row > * { min-width: 0; } .row bdi { font-family: var(--serif); }
summary.row { cursor: pointer; list-style: none; } summary.row::-webkit-details-marker { display: none; }
summary.row:hover { background: var(--desk); }
summary.row::before { content: ""; width: .4rem; height: .4rem; margin-left: .2rem; border: solid var(--soft);
  border-width: 0 2px 2px 0; transform: rotate(-45deg); }
[open] > summary.row::before { transform: rotate(45deg); }
.drivers { list-style: none; padding: 0 0 1rem 1.75rem; display: grid; gap: .875rem; }
.drivers p { display: flex; flex-wrap: wrap; gap: .125rem .75rem; align-items: baseline; font-size: .8125rem;
  color: var(--soft); }
.chip { background: var(--chip); color: var(--ink); border-radius: 1rem; padding: .0625rem .5rem; }
blockquote { font-family: var(--serif); max-height: 12rem; overflow-y: auto; }
.here { padding: .25rem 0 .75rem 1.75rem; }

@media (min-width: 62rem) {
  .page { grid-template-columns: minmax(0, 1fr) 20rem; align-items: start; }
  .heading { grid-column: 1 / -1; }
  .classes { grid-column: 2; grid-row: 2; position: sticky; top: 1.5rem; max-height: calc(100vh - 3rem);
    overflow-y: auto; }
  main { grid-column: 1; grid-row: 2; }
}
@media (max-width: 40rem) {
  body { padding: 1.5rem .75rem 3rem; }
  section section, .classes { padding: 1rem; }
  .scroll { margin: 0 -1rem; padding: 0 1rem; }
  .map th[scope=row] { left: -1rem; }
  .neurons > li.head { display: none; }
  .map td { min-width: 2.625rem; font-size: .75rem; } .map th[scope=row] { padding-right: .375rem; }
  .row { grid-template-columns: 1rem minmax(0, 1fr) minmax(4.5rem, auto); gap: .25rem .5rem; }
  .row > .number { grid-area: 1 / 3; } .row > .bar { grid-area: 2 / 2; }
  .row > bdi { grid-area: 2 / 3; text-align: right; max-width: 40vw; }
  .drivers, .here { padding-left: 1.5rem; }
}
@supports not selector(:has(a)) { .panel { display: grid; } }
"""


def shade(value: float, largest: float) -> str:
    """The class of a shade: `for-1` to `for-10`, `against-1` to `against-10`, or `even`."""
    step = round(STEPS * abs(value) / largest) if largest else 0
    return f"{'for' if value > 0 else 'against'}-{min(step, STEPS)}" if step else "even"


def _shades(colours: dict[str, tuple[int, int, int]]) -> str:
    """A rule for each shade, from the paper to the full colour."""
    rules = []
    for sign in ("for", "against"):
        for step in range(1, STEPS + 1):
            pairs = zip(colours["paper"], colours[sign], strict=True)
            mixed = "".join(f"{round(paper + (full - paper) * step / STEPS):02x}" for paper, full in pairs)
            rules.append(f".{sign}-{step} {{ background: #{mixed}; }}")
    return "\n".join(rules)


def _choices() -> str:
    """The chosen class's panel is shown, without a script."""
    return "\n".join(f".page:has(#c{i}:checked) #p{i} {{ display: grid; }}" for i in range(SWITCHABLE))


_NIGHT = f"@media (prefers-color-scheme: dark) {{\n{_shades(_DARK)}\n}}"
STYLE = f"{BASE}{_EXPLANATION}{_choices()}\n{_shades(_LIGHT)}\n{_NIGHT}\n"
"""the sheet of an explanation"""


def document(title: str, style: str, *body: str) -> str:
    """A page that stands by itself: nothing is loaded, no script runs, and of styles only this sheet's."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(style)),
        tag("title", title),
        tag("style", Html(style)),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', tag('div', *body, class_='page')), lang='en')}\n"


def _policy(style: str) -> str:
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
