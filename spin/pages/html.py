"""Pages from Jinja2 templates. A page loads nothing, runs no script, and shows all text of documents as text."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from spin.pages import charts, number_format, stylesheet


def render(template: str, **context: object) -> str:
    """Return the text of a template, given as `PACKAGE/FILE`: a file in the folder `templates` of a package.

    Every string in `context` is escaped unless it is `Markup`. Raises jinja2.UndefinedError where the template uses
    a name that `context` lacks.
    """
    return environment().get_template(template).render(**context)


@cache
def environment() -> Environment:
    """Return the environment of all HTML templates, with the filters and functions that they use."""
    env = Environment(
        loader=FunctionLoader(read_template),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_replace_invalid,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters |= {
        "signed": number_format.signed,
        "percent": number_format.percent,
        "grouped": number_format.grouped,
        "counted": number_format.counted,
        "shade": stylesheet.shade,
        "content_security_policy": content_security_policy,
    }
    env.globals |= {
        "bar": charts.bar,
        "share_bar": charts.share_bar,
        "column_chart": charts.column_chart,
        "shade_scale": stylesheet.shade_scale,
    }
    return env


def read_template(name: str) -> str:
    """Return the source of the template `PACKAGE/FILE`."""
    package, _, file = name.partition("/")
    return (files(package) / "templates" / file).read_text(encoding="utf-8")


def content_security_policy(style: str) -> str:
    """Return the policy that forbids everything except the one style sheet, which it names by its hash."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _replace_invalid(value: object) -> object:
    """Replace what neither UTF-8 nor HTML can hold: lone surrogates and NUL."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")
