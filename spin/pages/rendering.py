"""Documents from Jinja2 templates: HTML pages that load nothing and run no script, and Markdown.

Whatever a template prints is text: it is escaped, so that no document, label or file name becomes markup.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from spin.pages import charts, number_format, stylesheet

_INVALID = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|&~$#!])")


def render(template: str, **context: object) -> str:
    """The text of a template, given as `PACKAGE/FILE`: a file in the folder `templates` of a package.

    Every string in `context` is escaped unless it is `Markup`: for Markdown in a template that ends with `.md.j2`, for
    HTML in any other. Raises jinja2.UndefinedError where the template uses a name that `context` lacks.
    """
    environment = markdown_environment() if template.endswith(".md.j2") else html_environment()
    return environment.get_template(template).render(**context)


def render_report(template: str, title: str, **context: object) -> str:
    """The HTML page of a report, of a night or of an audit."""
    return render(template, page_title=title, style=Markup(stylesheet.report_css()), **context)


@cache
def html_environment() -> Environment:
    """The environment of all HTML templates, with the filters and functions that they use."""
    environment = _environment(_valid_html)
    environment.filters |= {
        "shade": stylesheet.shade,
        "content_security_policy": content_security_policy,
    }
    environment.globals |= {
        "bar": charts.bar,
        "share_bar": charts.share_bar,
        "column_chart": charts.column_chart,
        "shade_scale": stylesheet.shade_scale,
    }
    return environment


@cache
def markdown_environment() -> Environment:
    """The environment of all Markdown templates."""
    return _environment(_escape_markdown)


def content_security_policy(style: str) -> str:
    """The policy that forbids everything except the one style sheet, which it names by its hash."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def one_line(text: str) -> str:
    """A text as one line, with the characters that neither Markdown nor YAML can hold replaced."""
    return _INVALID.sub("\ufffd", " ".join(text.split()))


def _environment(finalize: Callable[[object], object]) -> Environment:
    """An environment whose templates print each value as `finalize` returns it."""
    environment = Environment(
        loader=FunctionLoader(_read_template),
        autoescape=True,  # Markup is printed as it is, also that of a macro.
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "signed": number_format.signed,
        "percent": number_format.percent,
        "grouped": number_format.grouped,
        "counted": number_format.counted,
        "significant": number_format.significant,
    }
    return environment


def _read_template(name: str) -> str:
    package, _, file = name.partition("/")
    return (files(package) / "templates" / file).read_text(encoding="utf-8")


def _valid_html(value: object) -> object:
    """Replace what neither UTF-8 nor HTML can hold: lone surrogates and NUL."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")


def _escape_markdown(value: object) -> object:
    """A text as one line of Markdown without markup."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return Markup(_MARKDOWN.sub(r"\\\1", one_line(value)) or "(empty)")
