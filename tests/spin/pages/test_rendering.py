"""Templates escape every text, refuse a missing name and replace what HTML cannot hold."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError
from markupsafe import Markup

from spin.pages.charts import bar, column_chart, share_bar
from spin.pages.rendering import html_environment, markdown_environment, render


def render_source(source: str, **context: object) -> str:
    return html_environment().from_string(source).render(**context)


@given(st.text(), st.text())
def test_text_and_attributes_are_read_back_unchanged(text: str, attribute: str) -> None:
    """A parser reads one element with its attribute and its text; only what HTML cannot hold is replaced."""
    events: list[Any] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            events.append((tag, attrs))

        def handle_data(self, data: str) -> None:
            events.append(data)

    reader = Reader()
    reader.feed(render_source('<p title="{{ attribute }}">{{ text }}</p>', text=text, attribute=attribute))
    reader.close()
    (name, attributes), parsed_text = events[0], "".join(events[1:])
    assert name == "p"
    assert attributes == [("title", attribute.replace("\0", "\ufffd"))]
    assert parsed_text == text.replace("\0", "\ufffd")


def test_strings_are_escaped_and_markup_is_not() -> None:
    """The string result of a filter is escaped too; lone surrogates are replaced."""
    assert render_source("{{ a }}{{ b }}", a="<i>&", b=Markup("<b>")) == "&lt;i&gt;&amp;<b>"
    assert render_source("{{ a | join }}", a=["<", ">"]) == "&lt;&gt;"
    assert render_source("{{ a }}", a="\ud83d\ude00 \ud83d") == "\U0001f600 \ufffd"


def test_markdown_is_escaped_as_markdown() -> None:
    """A text becomes one line without markup; numbers and the template's own text stay as they are."""
    source = "{% macro bold(text) %}**{{ text }}**{% endmacro %}| {{ a }} | {{ n }} | {{ bold(a) }} |"
    line = markdown_environment().from_string(source).render(a="a|b*\n# <c>\0", n=-1)
    assert line == "| a\\|b\\* \\# \\<c\\>\ufffd | -1 | **a\\|b\\* \\# \\<c\\>\ufffd** |"
    assert markdown_environment().from_string("{{ a }}").render(a=" \n") == "(empty)"


def test_a_template_with_a_missing_name_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'title' is undefined"):
        render("spin.pages/explanation.html.j2", page_title="", style=Markup())


def test_charts_have_the_size_of_their_values() -> None:
    assert 'class="bar for"' in bar(0, 1, -1, 3)
    assert '<rect x="250.0" y="0" width="250.0" height="10"/><line x1="250.0" x2="250.0"' in bar(0, 1, -1, 3)
    assert 'class="bar against"' in bar(0, -1, -1, 3)
    assert '<rect x="0.0" y="0" width="250.0"' in bar(0, -1, -1, 3)
    assert '<rect x="0" y="0" width="500.0" height="10"/>' in share_bar(0.5)
    assert 'width="2.0"' in share_bar(0.0)
    chart = column_chart([1.0, 4.0, 0.0], "per <second>")
    assert 'viewBox="0 0 30 100"' in chart
    assert 'aria-label="per &lt;second&gt;"' in chart
    assert '<rect x="0" y="75.0" width="9" height="25.0"/><rect x="10" y="0.0" width="9" height="100.0"/>' in chart
