"""Control characters in texts that are shown: in names and ids they would act on a terminal, or begin a line."""

from __future__ import annotations

_PICTURES = 0x2400
"""Unicode's pictures of the control characters below 32 begin here, in their order"""
_BREAKS = (0x85, 0x2028, 0x2029)
"""characters other than controls below 32 that end a line"""
_UNSEEN = (*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""controls of terminals as one byte, and what reverses the order of the text that follows"""
_SURROGATES = range(0xD800, 0xE000)
"""halves of characters, which cannot be encoded: to print one would raise an error"""
_SHOWN = {
    **{code: chr(_PICTURES + code) for code in range(0x20) if code != ord("\t")},
    0x7F: "␡",
    **dict.fromkeys((*_UNSEEN, *_SURROGATES), "\ufffd"),
    **dict.fromkeys(_BREAKS, "␤"),
}
_SHOWN_WITHIN_LINES = {code: shown for code, shown in _SHOWN.items() if code != ord("\n")}
_ESCAPED = {code: f"\\u{code:04x}" for code in (0x7F, *_UNSEEN, *_BREAKS, *_SURROGATES)}
"""as JSON writes them; `json.dumps` itself escapes those below 32"""


def show_controls(text: str) -> str:
    """A text in one line whose control characters are replaced by one visible character each; tabs stay."""
    return text.translate(_SHOWN)


def show_controls_within_lines(text: str) -> str:
    """The same, with the lines of the text as they are."""
    return text.replace("\r\n", "\n").translate(_SHOWN_WITHIN_LINES)


def escape_controls(json_text: str) -> str:
    """JSON with the same content whose strings hold no control characters."""
    return json_text.translate(_ESCAPED)
