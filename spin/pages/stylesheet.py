"""Style sheets of the pages: the CSS files of this package, and the rules that are generated."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

SHADES = 10
"""strengths of shade per sign"""
SELECTABLE_CLASSES = 12
"""classes that a reader can select on an explanation page"""

# Blue and orange differ for every kind of colour blindness, and text stays legible on the strongest shade.
_LIGHT = {"paper": (255, 255, 255), "for": (92, 172, 226), "against": (245, 158, 76)}
_DARK = {"paper": (27, 31, 38), "for": (29, 103, 160), "against": (160, 84, 18)}


@cache
def report_css() -> str:
    """The style sheet of a report: of a night, or of an audit."""
    return _read_css("base.css") + _read_css("report.css")


@cache
def explanation_css() -> str:
    """The style sheet of an explanation page."""
    dark = f"@media (prefers-color-scheme: dark) {{\n{_shade_rules(_DARK)}\n}}"
    written = _read_css("base.css"), _read_css("explanation.css")
    return "\n".join([*written, _panel_rules(), _shade_rules(_LIGHT), dark, ""])


def shade(value: float, largest: float) -> str:
    """The CSS class of a shade: `for-1` to `for-10`, `against-1` to `against-10`, or `even`."""
    step = round(SHADES * abs(value) / largest) if largest else 0
    return f"{'for' if value > 0 else 'against'}-{min(step, SHADES)}" if step else "even"


def shade_scale() -> list[str]:
    """The CSS classes of all shades, from the strongest against to the strongest for."""
    return [shade(step, SHADES) for step in range(-SHADES, SHADES + 1)]


def _read_css(name: str) -> str:
    return (files("spin.pages") / "static" / name).read_text(encoding="utf-8")


def _shade_rules(colours: dict[str, tuple[int, int, int]]) -> str:
    """A rule per shade, from the colour of the paper to the full colour."""
    rules = []
    for sign in ("for", "against"):
        for step in range(1, SHADES + 1):
            channels = zip(colours["paper"], colours[sign], strict=True)
            mixed = "".join(f"{round(paper + (full - paper) * step / SHADES):02x}" for paper, full in channels)
            rules.append(f".{sign}-{step} {{ background: #{mixed}; }}")
    return "\n".join(rules)


def _panel_rules() -> str:
    """The rules that show the panel of the selected class without a script."""
    return "\n".join(f".page:has(#c{i}:checked) #p{i} {{ display: grid; }}" for i in range(SELECTABLE_CLASSES))
