"""Style sheets of the pages: the CSS files of this package, and the rules that are generated."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

SHADES = 10
"""strengths of shade per sign"""
SELECTABLE_CLASSES = 12
"""classes that a reader can select on an explanation page"""


@cache
def report_css() -> str:
    """The style sheet of a report: of a night, or of an audit."""
    return _read_css("base.css") + _read_css("report.css")


@cache
def explanation_css() -> str:
    """The style sheet of an explanation page."""
    return "\n".join([_read_css("base.css"), _read_css("explanation.css"), _panel_rules(), _shade_rules(), ""])


def shade(value: float, largest: float) -> str:
    """The CSS class of a shade: `for-1` to `for-10`, `against-1` to `against-10`, or `even`."""
    step = round(SHADES * abs(value) / largest) if largest else 0
    return f"{'for' if value > 0 else 'against'}-{min(step, SHADES)}" if step else "even"


def shade_scale() -> list[str]:
    """The CSS classes of all shades, from the strongest against to the strongest for."""
    return [shade(step, SHADES) for step in range(-SHADES, SHADES + 1)]


def _read_css(name: str) -> str:
    return (files("spin.pages") / "static" / name).read_text(encoding="utf-8")


def _shade_rules() -> str:
    """A rule per shade, from the colour of the paper to the full colour."""
    rule = "background: color-mix(in srgb, var(--shade-{}) {}%, var(--paper));"
    shades = [(sign, step) for sign in ("for", "against") for step in range(1, SHADES + 1)]
    return "\n".join(f".{sign}-{step} {{ {rule.format(sign, 100 * step // SHADES)} }}" for sign, step in shades)


def _panel_rules() -> str:
    """The rules that show the panel of the selected class without a script."""
    return "\n".join(f".page:has(#c{i}:checked) #p{i} {{ display: grid; }}" for i in range(SELECTABLE_CLASSES))
