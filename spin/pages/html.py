"""HTML in which nothing is markup but what `tag` made, so that no document or label can become any."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

_VOID = ("input", "meta")
_CLOSED = ("line", "rect")


class Html(str):
    """Markup already; every other str is text, which is escaped where it enters."""


def tag(name: str, /, *children: str, **attributes: object) -> Html:
    """An element; `class_` gives class, `aria_label` aria-label, True a bare attribute, None and False none."""
    given = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _CLOSED:
        return Html(f"<{name}{given}/>")
    return Html(f"<{name}{given}>" if name in _VOID else f"<{name}{given}>{together(children)}</{name}>")


def together(parts: Iterable[str]) -> Html:
    """Markup and text, one after the other."""
    return Html("".join(part if isinstance(part, Html) else escape(_valid(part)) for part in parts))


def _attribute(key: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(_valid(str(value)))}"'


def _valid(text: str) -> str:
    """The text as UTF-8 and HTML can hold it: halves of surrogate pairs and NUL are replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")
