"""The explanation page in a real browser: what it shows, and that it loads and runs nothing."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.commands.model_commands import print_explanation
from spin import TrainedClassifier
from spin.labels.label_space import LabelSpace
from spin.pages.explanation import Explanation, stretches
from spin.pages.explanation_page import Driver, explanation_page, shown_neurons
from spin.pages.layer_map import LayerCell, layer_map, rounded_levels
from spin.pages.number_format import counted, grouped, percent, signed
from spin.pages.stylesheet import SELECTABLE_CLASSES, shade
from spin.settings import BackboneSettings
from spin.sites import BY_WORDS, FeatureColumn
from spin.words.word_regression import TermContribution
from tests.pipelines.training.test_neurons import Project, train
from tests.support import tiny
from tests.support.browser import open_page
from tests.support.hostile_text import HOSTILE_TEXTS

COLUMNS = [f"{kind}.{n:02d}.{of}" for n in range(4) for kind in ("resid", "ffn") for of in ("mean", "max")]
NEURONS = tuple((FeatureColumn.parse(c), 7 * i) for i, c in enumerate(COLUMNS) if not c.startswith("ffn.00"))
TEXT = "We sat on the runway\n\nfor  hours, but the crew was lovely"


def make_explanation(
    text: str = TEXT,
    classes: Sequence[str] = ("good", "bad", "plain"),
    *,
    by_word: Sequence[float] | None = None,
    words_read: int | None = None,
    multilabel: bool = False,
) -> Explanation:
    """Random contributions that add up, with a special token before and after the words of the text.

    `by_word` holds the words' contributions to the first class, `words_read` is the number of words within the
    token limit.
    """
    draw = np.random.default_rng(len(text))
    spans = [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)][:words_read]
    words = ((0, 0), *spans, (0, 0))
    bias = draw.normal(size=len(classes)) / 4
    values = draw.normal(size=(len(words), len(classes)))
    if by_word is not None:
        values[:, 0] = [0, *by_word, 0]
    contributions = draw.normal(size=(len(NEURONS), len(classes)))
    contributions += (values.sum(0) - contributions.sum(0)) / len(NEURONS)
    loudest = draw.integers(len(words), size=len(NEURONS))
    logits, activations = values.sum(0) + bias, draw.normal(size=len(NEURONS))
    label_space = LabelSpace(tuple(classes), multilabel)
    return Explanation(
        text,
        label_space,
        logits,
        bias,
        NEURONS,
        contributions,
        words,
        values,
        loudest,
        activations,
        truncated=words_read is not None,
    )


def make_drivers(
    texts: Sequence[str], labels: Sequence[str] = ("good",)
) -> dict[tuple[FeatureColumn, int], list[Driver]]:
    drivers = [Driver(f"{text} {i}", labels[i % len(labels)], text, 9.5 - i) for i, text in enumerate(texts)]
    return dict.fromkeys(NEURONS, drivers)


def parse_number(text: str) -> Decimal:
    return Decimal(text.replace("\u2212", "-"))


def measure_boxes(window: Any, selector: str) -> list[list[float]]:
    """(left, top, right, bottom) of each element that is laid out."""
    script = """all => all.map(e => e.getBoundingClientRect()).filter(b => b.width || b.height)
        .map(b => [b.left, b.top, b.right, b.bottom])"""
    return window.eval_on_selector_all(selector, script)


def measure_colours(window: Any, selector: str) -> list[tuple[list[float], list[float]]]:
    """(text colour, background) of each element as red, green, blue; a transparent background is that of its card."""
    script = """all => all.map(e => {
        const see = getComputedStyle(e), card = getComputedStyle(e.closest('section, aside'));
        return [see.color, see.backgroundColor.endsWith(', 0)') ? card.backgroundColor : see.backgroundColor];
    })"""
    pairs = window.eval_on_selector_all(selector, script)
    return [tuple(map(parse_colour, pair)) for pair in pairs]  # type: ignore[misc]


def parse_colour(colour: str) -> list[float]:
    """Red, green and blue from 0 to 255; a mixed colour is `color(srgb …)` with numbers up to 1."""
    scale = 255 if colour.startswith("color(") else 1
    return [scale * float(number) for number in re.findall(r"[\d.]+", colour)[:3]]


def luminance(colour: Sequence[float]) -> float:
    """Relative luminance as WCAG defines it."""
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_page_shows_the_prediction_and_all_its_parts(browser: Any, tmp_path: Path) -> None:
    """Label, probability, the text as typed, layer map, sum and neurons, each with a visible size."""
    explanation = make_explanation()
    with open_page(browser, tmp_path, explanation_page(explanation, title="tweets, version 3")) as window:
        share = 100 * np.exp(explanation.logits.max()) / np.exp(explanation.logits).sum()
        assert window.locator("h1").inner_text() == f"{explanation.label} {share:.1f}\u202f%"
        assert window.title() == f"{explanation.label} – tweets, version 3"
        shown = window.locator(".panel:visible")
        assert shown.count() == 1
        assert shown.locator("h2").inner_text() == f"Evidence for and against {explanation.label}"
        assert shown.locator("h3").all_inner_texts() == ["Words", "Layers", "Sum", "Neurons"]
        assert shown.locator(".text").inner_text() == TEXT
        assert shown.locator(".word").all_inner_texts() == re.findall(r"\w+|[^\w\s]", TEXT)
        assert shown.locator(".map tbody th").all_inner_texts() == ["resid mean", "resid max", "ffn mean", "ffn max"]
        assert shown.locator(".map thead th").all_inner_texts() == ["layer", "0", "1", "2", "3"]
        assert shown.locator("summary code").count() == 12
        for part in ("#p0 .word", "#p0 .cell", "#p0 .falls rect", "#p0 .neurons rect", ".class rect", "#p0 .ramp i"):
            part_boxes = measure_boxes(window, part)
            assert part_boxes, part
            assert all(right > left and bottom - top > 3 for left, top, right, bottom in part_boxes), part


@pytest.mark.parametrize(
    ("logits", "named"), [((1.0, -2.0, 0.0), ["good 73.1", "plain 50.0"]), ((-1.0, -2.0, -3.0), [])]
)
def test_a_multilabel_page_names_all_classes_from_one_half(
    browser: Any, tmp_path: Path, logits: tuple[float, ...], named: list[str]
) -> None:
    """Each class has its own probability, a sigmoid. The heading reports if no class reaches its threshold."""
    explanation = replace(make_explanation(multilabel=True), logits=np.array(logits))
    with open_page(browser, tmp_path, explanation_page(explanation)) as window:
        shown = window.locator("h1 > span:not(.share)").all_inner_texts()
        assert shown == ([f"{name}\u202f%" for name in named] or ["No class reaches its threshold"])
        assert window.title().startswith("good, plain – " if named else "No class – ")
        shares = window.locator(".class .number:not(.logit)").all_inner_texts()
        assert shares == [f"{100 / (1 + np.exp(-x)):.1f}\u202f%" for x in sorted(logits, reverse=True)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_shades_distinguish_for_from_against_and_are_legible(browser: Any, tmp_path: Path, scheme: str) -> None:
    """Blue for, orange against, stronger for larger values, in both colour schemes.

    All text has a contrast of at least 4.5.
    """
    values = [2.0, -2.0, 0.5, -0.5, 0.0, 3.0, -3.0]
    explanation = make_explanation("a b c d e f g", by_word=values)
    explanation.logits[0] = 100
    with open_page(browser, tmp_path, explanation_page(explanation), scheme=scheme) as window:
        backgrounds = [background for _, background in measure_colours(window, "#p0 .word")]
        blueness = [blue - red for red, _, blue in backgrounds]
        # relative to the neutral word: positive for blue, negative for orange
        blueness = [value - blueness[4] for value in blueness]
        assert [np.sign(round(value)) for value in blueness] == list(np.sign(values))
        assert sorted(range(7), key=blueness.__getitem__) == sorted(range(7), key=values.__getitem__)
        assert window.locator("#p0 .word").first.get_attribute("title") == "+2.000"
        bars, axis_boxes = measure_boxes(window, "#p0 .neurons rect"), measure_boxes(window, "#p0 .neurons .bar")
        contributions = window.locator("#p0 summary .number").all_inner_texts()
        fills = window.eval_on_selector_all("#p0 .neurons rect", "all => all.map(e => getComputedStyle(e).fill)")
        for bar, axis, added, fill in zip(bars, axis_boxes, contributions, fills, strict=True):
            red, _, blue = map(int, re.findall(r"\d+", fill))
            assert (bar[0] + bar[2] > axis[0] + axis[2]) == (parse_number(added) > 0) == (blue > red)
        for selector in ("#p0 .word", "#p0 .cell", "#p0 .number", ".note", ".class bdi", ".class .number", "th"):
            for text_colour, background in measure_colours(window, selector):
                low, high = sorted((luminance(text_colour), luminance(background)))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (selector, text_colour, background)


def test_numbers_add_up_as_they_are_shown(browser: Any, tmp_path: Path) -> None:
    """For each class the steps of the sum, the layers, the words and the neurons add up."""
    explanation = make_explanation()
    with open_page(browser, tmp_path, explanation_page(explanation, neurons=99)) as window:
        ranked = np.argsort(-explanation.logits)
        logits = window.locator(".logit").all_inner_texts()
        assert logits == [signed(explanation.logits[k]) for k in ranked]
        for i, k in enumerate(ranked):
            *steps, total = map(parse_number, window.locator(f"#p{i} .falls td.number").all_text_contents())
            assert sum(steps) == total == parse_number(logits[i])
            assert steps[0] == parse_number(signed(explanation.bias[k]))
            by_layer = list(map(parse_number, window.locator(f"#p{i} .map .sums td").all_text_contents()))
            assert float(sum(by_layer)) == pytest.approx(
                explanation.contributions[:, k].sum(), abs=0.005 * len(by_layer)
            )
            cells = list(map(parse_number, window.locator(f"#p{i} .cell").all_text_contents()))
            assert len(cells) == len(NEURONS)
            assert float(sum(cells)) == pytest.approx(explanation.contributions[:, k].sum(), abs=0.005 * len(cells))
            words = [parse_number(word.get_attribute("title")) for word in window.locator(f"#p{i} .word").all()]
            special = explanation.word_contributions[[0, -1], k].sum()
            assert float(sum(words)) + special + explanation.bias[k] == pytest.approx(
                explanation.logits[k], abs=0.0005 * len(words)
            )
            assert f"The special tokens contribute {signed(special)}." in window.locator(f"#p{i}").text_content()
            contributions = [
                float(parse_number(n)) for n in window.locator(f"#p{i} summary .number").all_text_contents()
            ]
            np.testing.assert_allclose(sorted(contributions), sorted(explanation.contributions[:, k]), atol=0.00051)


def test_bars_of_the_sum_join_end_to_start(browser: Any, tmp_path: Path) -> None:
    """Each step begins where the previous one ends, and the bar of the logit spans from zero to the last end."""
    with open_page(browser, tmp_path, explanation_page(make_explanation())) as window:
        signs = [parse_number(n) > 0 for n in window.locator("#p0 .falls td.number").all_inner_texts()]
        bars = zip(measure_boxes(window, "#p0 .falls rect"), signs, strict=True)
        *steps, total = [(left, right) if up else (right, left) for (left, _, right, _), up in bars]
        assert [start for start, _ in steps[1:]] == pytest.approx([end for _, end in steps[:-1]], abs=1.5)
        assert total == pytest.approx((steps[0][0], steps[-1][1]), abs=1.5)


def test_each_class_can_be_selected_by_mouse_and_keyboard(browser: Any, tmp_path: Path) -> None:
    """The page needs no script for it."""
    explanation = make_explanation()
    ranked = [explanation.classes[k] for k in np.argsort(-explanation.logits)]
    with open_page(browser, tmp_path, explanation_page(explanation)) as window:
        assert window.locator("script").count() == 0
        assert window.locator("label.class bdi").all_inner_texts() == ranked
        window.locator("label.class", has_text=ranked[2]).click()
        assert window.locator("h2:visible").all_inner_texts() == [f"Evidence for and against {ranked[2]}"]
        window.keyboard.press("ArrowUp")
        assert window.locator("h2:visible").all_inner_texts() == [f"Evidence for and against {ranked[1]}"]
        assert window.locator("h1").inner_text().startswith(explanation.label)


def test_only_the_likeliest_of_many_classes_can_be_selected(browser: Any, tmp_path: Path) -> None:
    """The logits of all classes are on the page, those of the last ones behind a click."""
    explanation = make_explanation(classes=[f"class {i}" for i in range(40)])
    with open_page(browser, tmp_path, explanation_page(explanation)) as window:
        assert window.locator("input[type=radio]").count() == window.locator(".panel").count() == SELECTABLE_CLASSES
        window.get_by_text(f"{40 - SELECTABLE_CLASSES} more").click()
        assert window.locator(".logit:visible").count() == 40
        window.locator("label.class").nth(SELECTABLE_CLASSES - 1).click()
        assert window.locator(".panel:visible").get_attribute("id") == f"p{SELECTABLE_CLASSES - 1}"


def test_a_neuron_opens_to_the_documents_that_drive_it(browser: Any, tmp_path: Path) -> None:
    """Documents appear in their order with label and value.

    Long texts are cut, and a neuron without documents has a note.
    """
    explanation = make_explanation()
    tops = explanation.top(2)
    long_text = "long " * 1000
    drivers = {
        (tops[0].column, tops[0].neuron): [
            Driver("d7", "good", "a fine crew", 9.5),
            Driver("d8", "bad", long_text, 3.25),
        ]
    }
    with open_page(browser, tmp_path, explanation_page(explanation, drivers)) as window:
        first, second = window.locator("#p0 .neurons details").all()[:2]
        assert not first.get_by_text("a fine crew").is_visible()
        first.locator("summary").click()
        assert first.locator("summary code").inner_text() == f"{tops[0].column}[{tops[0].neuron}]"
        assert first.locator("summary bdi").inner_text() == tops[0].word
        assert first.locator("blockquote").all_inner_texts() == ["a fine crew", long_text[:600] + "…"]
        assert first.locator(".chip").all_inner_texts() == ["good", "bad"]
        assert [n.split()[0] for n in first.locator("li p > span").all_inner_texts()] == ["+9.5", "+3.2"]
        second.locator("summary").click()
        assert "No training documents are available" in second.inner_text()
        for top, detail in zip(tops, (first, second), strict=True):
            assert (
                detail.locator(".here")
                .inner_text()
                .startswith(f"On this text its activation is {signed(top.value, 1)} σ")
            )


@pytest.mark.parametrize("hostile", HOSTILE_TEXTS, ids=range(len(HOSTILE_TEXTS)))
def test_no_text_becomes_markup(browser: Any, tmp_path: Path, hostile: str) -> None:
    """Text, labels, drivers, ids and title are shown as they are, and nothing overflows at widths of 1280 and 400."""
    explanation = make_explanation(f"{hostile}\n{hostile} end", [hostile, f"{hostile} b"])
    html = explanation_page(explanation, make_drivers([hostile, hostile], [hostile]), title=hostile)
    for width in (1280, 400):
        with open_page(browser, tmp_path, html, width=width) as window:
            window.locator("#p0 summary").first.click()
            assert window.locator("#p0 .text").text_content() == explanation.text
            assert window.locator("h1 bdi").text_content() == explanation.label
            assert window.locator("label.class bdi").first.text_content() == explanation.label
            assert window.locator(".eyebrow").text_content() == hostile
            details = window.locator("#p0 details").first
            assert details.locator("blockquote").all_text_contents() == [hostile, hostile]
            assert details.locator(".chip").first.text_content() == hostile
            assert details.locator("p bdi").nth(1).text_content() == f"{hostile} 0"
            assert window.locator("script, img, #p0 b, [onmouseover], [onload], [onerror]").count() == 0
            assert window.evaluate("document.documentElement.scrollWidth") <= width


def test_the_command_writes_the_page_of_a_trained_classifier(
    browser: Any,
    backbone_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A script tag in the text and in the training documents stays text, and the page loads nothing."""
    script = "<script>window.hit = 1</script>"
    documents = tiny.make_documents(120)
    backbone = BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu")
    train(tmp_path, backbone, [f"{script} {d['text']}" for d in documents], [d["label"] for d in documents])
    page = tmp_path / "explained.html"
    text = f"the crew was lovely {script} and warm"
    printed = Project(tmp_path, monkeypatch, capsys).spin("explain", "--text", text, "--html", str(page))
    assert printed.endswith(f"wrote {page}\n")
    explanation = TrainedClassifier.load(tmp_path / "model").explain(text)
    with open_page(browser, tmp_path, page.read_text(encoding="utf-8")) as window:
        assert window.title() == f"{explanation.label} – tiny, version 3"
        shown = window.locator("#p0 .text")
        assert shown.inner_text() == text
        for word in ("crew", "lovely", "script", "warm"):
            assert shown.locator(".word", has_text=word).first.is_visible()
        for part in ("#p0 .word", "#p0 .cell", "#p0 .falls rect", "#p0 .neurons rect", ".class rect"):
            assert all(right > left and bottom > top for left, top, right, bottom in measure_boxes(window, part)), part
        for top, neuron in zip(explanation.top(12), window.locator("#p0 .neurons details").all(), strict=False):
            assert neuron.locator("code").first.text_content() == f"{top.column}[{top.neuron}]"
            neuron.locator("summary").click()
            assert neuron.locator("blockquote").count() == 5
            assert neuron.locator("blockquote").first.inner_text().startswith(script)
        assert window.locator("script").count() == 0


@pytest.mark.parametrize("width", [320, 1280])
@pytest.mark.parametrize("text", ["", " \n ", "?", " ".join(f"word{i}" for i in range(300))], ids=len)
def test_short_and_long_texts_fit_the_window(browser: Any, tmp_path: Path, text: str, width: int) -> None:
    """Empty texts, one character and 300 words.

    Only the table of layers may be wider than the window, and it scrolls.
    """
    with open_page(browser, tmp_path, explanation_page(make_explanation(text)), width=width) as window:
        assert window.locator("#p0 .text").inner_text().strip() == (text.strip() or "(the text is empty)")
        assert window.locator("#p0 .word").count() == len(text.split())
        assert window.evaluate("document.documentElement.scrollWidth") <= width
        for left, _, right, _ in measure_boxes(
            window, "#p0 .word, #p0 .neurons .number, .class .number, #p0 .falls td"
        ):
            assert 0 <= left <= right <= width


def test_text_beyond_the_token_limit_is_marked(browser: Any, tmp_path: Path) -> None:
    with open_page(browser, tmp_path, explanation_page(make_explanation(words_read=4))) as window:
        assert window.locator("#p0 .text").inner_text() == TEXT
        assert window.locator("#p0 .unread").inner_text() == TEXT[len("We sat on the") :]
        assert "and not the greyed text beyond it" in window.locator("#p0").inner_text()


def test_each_line_of_a_text_has_its_own_direction(browser: Any, tmp_path: Path) -> None:
    """A Hebrew line starts at the right and the English line below it at the left."""
    with open_page(browser, tmp_path, explanation_page(make_explanation("\u05e9\u05dc\u05d5\u05dd\nhello"))) as window:
        text, hebrew, english = measure_boxes(window, "#p0 .text, #p0 .word")
        assert hebrew[2] == pytest.approx(text[2], abs=2)
        assert english[0] == pytest.approx(text[0], abs=2)


def test_a_page_is_a_single_document_that_may_load_nothing() -> None:
    """Its content security policy allows the style sheet by its hash, and nothing else."""
    html = explanation_page(make_explanation())
    assert html.startswith('<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport"')
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    [style] = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    expected = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert unescape(policy) == expected
    assert not re.search(r"<script|<link|<img|<iframe|@import|url\(|\bsrc=|\bhref=|\bstyle=", html)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4)), max_size=12))
def test_stretches_hold_each_word_once_and_do_not_overlap(spans: list[tuple[int, int]]) -> None:
    words = [(start, start + length) for start, length in spans]
    merged = stretches(words)
    assert sorted(i for _, _, members in merged for i in members) == [
        i for i, (start, end) in enumerate(words) if start < end
    ]
    assert all(before[1] <= after[0] for before, after in pairwise(merged))
    for start, end, members in merged:
        assert (start, end) == (min(words[i][0] for i in members), max(words[i][1] for i in members))


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=9))
def test_rounded_levels_end_at_the_total(steps: list[float]) -> None:
    """Differences of the rounded levels add up to the rounded total, and each is within one unit of its step."""
    ends = rounded_levels(steps, sum(steps))
    shown = [Decimal(f"{b - a:.2f}") for a, b in zip([0.0, *ends], ends, strict=False)]
    assert sum(shown) == Decimal(f"{round(sum(steps), 2):.2f}")
    assert all(abs(float(a) - b) <= 0.0101 for a, b in zip(shown, steps, strict=True))


def test_a_layer_map_sums_by_kind_pooling_and_layer() -> None:
    explanation = make_explanation()
    rows = {(row.kind, row.pooling): row for row in layer_map(explanation, 1).rows}
    assert list(rows) == [("resid", "mean"), ("resid", "max"), ("ffn", "mean"), ("ffn", "max")]
    for (column, _), value in zip(NEURONS, explanation.contributions[:, 1], strict=True):
        cell = rows[column.site.kind, column.pooling].cells[column.site.layer]
        assert cell == LayerCell(pytest.approx(value), 1)
    doubled = replace(
        explanation, neurons=(*NEURONS, NEURONS[0]), contributions=explanation.contributions[[*range(14), 0]]
    )
    [first, *_] = layer_map(doubled, 1).rows
    assert first.cells[0] == LayerCell(pytest.approx(2 * explanation.contributions[0, 1]), 2)


def test_shown_neurons_are_those_that_the_page_lists() -> None:
    """They belong to the classes that can be selected and to no other; here each class has its own neuron."""
    explanation = make_explanation(classes=[f"class {i}" for i in range(SELECTABLE_CLASSES + 1)])
    explanation = replace(explanation, contributions=np.eye(len(NEURONS), len(explanation.classes)))
    listed = re.findall(r"<code>(\S+)\[(\d+)\]</code>", explanation_page(explanation, neurons=1))
    assert len(set(listed)) == SELECTABLE_CLASSES
    assert {(column, str(neuron)) for column, neuron in shown_neurons(explanation, 1)} == set(listed)


def test_numbers_and_shades_are_formatted_for_reading() -> None:
    assert [signed(v) for v in (0.254, -0.25, -0.001, 0.0)] == ["+0.25", "\u22120.25", "0.00", "0.00"]
    assert [shade(v, 2.0) for v in (2, -2, 1, -0.05, 0)] == ["for-10", "against-10", "for-5", "even", "even"]
    assert shade(0.0, 0.0) == "even"
    assert [counted(n, "document") for n in (1, 0, 12345)] == ["1 document", "0 documents", "12,345 documents"]
    assert counted(2, "class", "classes") == "2 classes"
    assert (percent(0.6125), percent(1, 0), grouped(12345), grouped(1234.56, 1)) == (
        "61.3\u202f%", "100\u202f%", "12,345", "1,234.6"
    )  # fmt: skip


def test_words_that_share_a_span_are_shown_once() -> None:
    """Byte tokens of one emoji share a span, for example; the sum of their contributions is shown."""
    explanation = make_explanation("ab", by_word=[1.0])
    doubled = np.insert(explanation.word_contributions, 2, 0.25, axis=0)
    twice = replace(explanation, words=((0, 0), (0, 2), (0, 2), (0, 0)), word_contributions=doubled)
    assert explanation_page(twice).count('title="+1.250">ab</span>') == 1


def test_terminal_and_page_say_what_was_not_read(capsys: pytest.CaptureFixture[str]) -> None:
    note = "decided by words; the model was not read; --deep adds neurons"
    whole = make_explanation()
    early = replace(whole, exit=BY_WORDS)
    for explanation, said in ((whole, False), (early, True)):
        assert (f"This text was {note}." in explanation_page(explanation)) == said
        print_explanation(explanation)
        assert (note in capsys.readouterr().out.splitlines()) == said


def test_the_terminal_shows_the_logit_as_the_sum_of_all_layers(capsys: pytest.CaptureFixture[str]) -> None:
    """With terms and bias; to the two digits that are printed."""
    word = TermContribution("words", "hours", np.full(3, 0.5), ((3, 8),))
    whole = make_explanation()
    for explanation in (whole, replace(whole, terms=(word,), logits=whole.logits + 0.5)):
        print_explanation(explanation)
        name = explanation.classes[explanation.chosen[0]]
        [line] = [
            each for each in capsys.readouterr().out.splitlines() if each.startswith(f"{name} ") and "bias" in each
        ]
        total, parts = re.fullmatch(rf"{name} (\S+) = (.+)", line).groups()  # type: ignore[union-attr]
        values = dict(part.rsplit(" ", 1) for part in parts.split(", "))
        layers = {f"layer {column.site.layer}" for column, _ in explanation.neurons}
        assert values.keys() == layers | {"bias"} | ({"terms"} if explanation.terms else set())
        assert float(total) == pytest.approx(sum(map(float, values.values())), abs=0.01 * len(values))


def test_words_and_their_pieces_are_one_row(capsys: pytest.CaptureFixture[str]) -> None:
    """Strings of characters have no row of their own."""
    start = TEXT.index("hours,")
    pieces = [TermContribution("characters", term, np.full(3, 0.25), ((start, start + 6),)) for term in (" hou", "hou")]
    word = TermContribution("words", "hours", np.full(3, 0.5), ((start, start + 5),))
    explanation = replace(make_explanation(), terms=(word, *pieces))
    page = explanation_page(explanation)
    assert re.findall(r'<bdi class="term">(.*?)</bdi>', page) == ["hours"] * 3
    print_explanation(explanation)
    [row] = [line for line in capsys.readouterr().out.splitlines() if "“" in line]
    assert row.split() == ["“hours”", "+1.000"]


def test_on_a_narrow_screen_names_stand_above_their_bars(browser: Any, tmp_path: Path) -> None:
    """Those of terms as those of neurons, and the page itself does not scroll sideways."""
    start = TEXT.index("hours")
    word = TermContribution("words", "hours", np.full(3, 0.5), ((start, start + 5),))
    page = explanation_page(replace(make_explanation(), terms=(word,)), title="x" * 60)
    with open_page(browser, tmp_path, page, width=390) as window:
        for row in window.locator("#p0 .neurons .row:not(.head)").all():
            name, bar = row.locator(".term, code").bounding_box(), row.locator(".bar").bounding_box()
            assert name["x"] == bar["x"]
            assert name["y"] < bar["y"]
        assert window.evaluate("document.documentElement.scrollWidth") <= 390
