"""The model card contains every fact, its tables parse, and no name becomes markup."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st

from spin.fitted.abstention import ErrorPromise, PromisedBand
from spin.fitted.fitted_classifier import ChoiceSummary, ExitSummary, LeakageCap, TrainingSummary, UncappedChoice
from spin.heads.selection import Selection
from spin.labels.label_space import LabelSpace
from spin.labels.metrics import ClassFigures
from spin.monitor.quality import Estimate, QualityEstimate
from spin.pages.model_card import CardFacts, ContenderResult, ScoreInterval, card_text, model_card
from spin.settings import Choice, DecisionSettings
from spin.sites import FeatureColumn
from tests.support.summaries import build_choice_summary

CALIBRATION = {"valid_ece": 0.0125}
SHALLOW = build_choice_summary(
    depth=1, compute=0.25, neurons=1200, eta=0.5, valid_score=0.7, shares={"neurons": 0.5}, **CALIBRATION
)
DEEP = build_choice_summary(
    depth=4,
    compute=1.0,
    neurons=1200,
    eta=0.9,
    valid_score=0.8125,
    shares={"neurons": 0.75, "words": 0.25},
    **CALIBRATION,
)
TRAINING = TrainingSummary(choices={"accuracy": DEEP, "cheapest": SHALLOW}, frontier=(SHALLOW, DEEP), tried=2)
TABLE = [
    ContenderResult(
        name="tfidf",
        accuracy=0.7,
        accuracy_interval=ScoreInterval(0.69, 0.714, -0.06, -0.04),
        macro_f1=0.65,
        macro_f1_interval=ScoreInterval(0.63, 0.67, -0.08, 0.001),
        documents=1500,
        neurons=0,
        neurons_of=9000,
        words=17000,
        depth=0,
        depth_of=4,
        docs_per_s=35751.2,
    ),
    ContenderResult(
        name="spin",
        accuracy=0.75,
        accuracy_interval=ScoreInterval(0.73, 0.77, 0.0, 0.0),
        macro_f1=0.725,
        macro_f1_interval=ScoreInterval(0.7, 0.75, 0.0, 0.0),
        documents=1500,
        neurons=1115,
        neurons_of=9000,
        words=0,
        depth=2,
        depth_of=4,
        docs_per_s=432.1,
    ),
]
NEURONS = {"resid.00.mean": 3, "ffn.02.mean": 5, "ffn.02.max": 7, "resid.02.mean": 1100}
CLASSES = ("bad|worse", "good\n# best", "a_b*c*`d` <script>&amp;[x](y)")


def make_facts(classes: tuple[str, ...] = CLASSES, **changed: Any) -> CardFacts:
    """Facts about 12 documents of cyclic classes, with the splits train, train, valid, test in turn."""
    columns = {FeatureColumn.parse(text): np.arange(count) for text, count in NEURONS.items()}
    facts = CardFacts(
        name="tweets",
        purpose="Tells moods apart.",
        data="s3://bucket/a|b/*.parquet",
        fingerprint="f1" * 32,
        label_space=LabelSpace(classes),
        y=np.arange(12) % len(classes),
        splits=["train", "train", "valid", "test"] * 3,
        backbone="package:x/model_a",
        digest="d2" * 32,
        max_tokens=1256,
        metric="macro_f1",
        table=TABLE,
        tested=TABLE[1],
        per_class={
            name: ClassFigures(precision=0.5, recall=0.25, f1=1 / 3, support=1234.0 + k)
            for k, name in enumerate(classes)
        },
        training=TRAINING,
        choose="accuracy",
        words=0,
        selection=Selection(columns, {c: np.ones(len(n)) for c, n in columns.items()}, 0.9),
        test_ece=0.0421,
        decision=DecisionSettings(),
        versions={"torch": "2.9.0", "numpy": "2.3"},
    )  # fmt: skip
    return replace(facts, **changed)


def parse_cells(line: str) -> list[str]:
    """The cells of a table row, as a Markdown reader sees them."""
    assert line.startswith("| ")
    assert line.endswith(" |")
    parts = re.split(r"(?<!\\)(?:\\\\)*\|", line[1:-1])
    return [re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", part.strip()) for part in parts]


def parse_tables(card: str) -> dict[str, dict[str, list[str]]]:
    """Every table by the name of its first column, as a mapping from first cell to the other cells."""
    by_name: dict[str, dict[str, list[str]]] = {}
    lines = card.splitlines()
    for i, line in enumerate(lines):
        if re.fullmatch(r"\|( :?-+:? \|)+", line):
            head, width = parse_cells(lines[i - 1]), line.count("|") - 1
            assert len(head) == width
            name = f"{head[0]} {len(by_name)}" if head[0] in by_name else head[0]
            rows = [head]
            for next_line in lines[i + 1 :]:
                if not next_line.startswith("|"):
                    break
                rows.append(parse_cells(next_line))
                assert len(rows[-1]) == width, next_line
            by_name[name] = {row[0]: row[1:] for row in rows}
    return by_name


def test_the_card_names_the_shares_of_early_exits() -> None:
    """Those of the choice in use, by words and after blocks."""
    exits = tuple(ExitSummary(depth=d, threshold=0.9, valid_share=s) for d, s in ((-1, 0.314), (2, 0.2)))
    facts = make_facts()
    training = TRAINING.model_copy(update={"choices": {"accuracy": DEEP.model_copy(update={"exits": exits})}})
    card = model_card(replace(facts, training=training))
    assert "Of the validation documents, 31 % by words, 20 % after block 2 exit early" in card
    assert "exit early" not in model_card(facts)


def test_the_card_contains_every_fact() -> None:
    """Each fact is in its section and table, with its unit."""
    card = model_card(make_facts())
    by_name = parse_tables(card)
    assert card_text(card).startswith("# tweets\n\nTells moods apart.\n\n## Intended use and limits\n")
    for expected in ("f1" * 32, "d2" * 32, "1,256 tokens", r"s3://bucket/a\|b/\*.parquet", r"package:x/model\_a"):
        assert expected in card
    assert by_name["class"]["all documents"] == ["6", "3", "3"]
    first, second, third = (name for name in by_name["class"] if name not in ("class", "all documents"))
    assert (first, second) == ("bad|worse", "good # best")
    assert [by_name["class"][name] for name in (first, second, third)] == [["2", "1", "1"]] * 3
    spin, tfidf = by_name["contender"]["spin"], by_name["contender"]["tfidf"]
    assert spin[:2] == ["75.0 % [73.0–77.0]", "72.5 % [70.0–75.0]"]
    assert spin[2:] == ["1,115 of 9,000", "–", "2 of 4", "432"]
    assert tfidf[:2] == ["70.0 % [69.0–71.4]", "65.0 % [63.0–67.0] ≈"], "its macro-F1 may be that of spin"
    assert tfidf[2:] == ["–", "17,000", "0 of 4", "35,751"]
    assert "these 1,500 documents" in card
    assert by_name["class 2"]["bad|worse"] == ["50.0 %", "25.0 %", "33.3 %", "1,234"]
    assert by_name["depth"] == {
        "depth": ["compute", "neurons", "words", "eta", "macro_f1"],
        "1": ["25.0 %", "1,200", "no", "0.5", "70.0 %"],
        "4": ["100.0 %", "1,200", "no", "0.9", "81.2 %"],
    }
    assert by_name["choice"]["accuracy (this card)"] == ["4", "100.0 %", "1,200", "no", "0.9", "81.2 %", "linear"]
    assert by_name["choice"]["cheapest"] == ["1", "25.0 %", "1,200", "no", "0.5", "70.0 %", "linear"]
    assert by_name["layer"] == {
        "layer": ["ffn max", "ffn mean", "resid mean", "all"],
        "0": ["–", "–", "3", "3"],
        "2": ["7", "5", "1,100", "1,112"],
    }
    assert list(by_name["figure"].values()) == [["value"], ["75.0 %"], ["25.0 %"], ["0.0125"], ["0.0421"]]
    assert by_name["library"] == {"library": ["version"], "torch": ["2.9.0"], "numpy": ["2.3"]}
    assert "on 3 documents of the same corpus" in card
    for untested in ("other domains", "other languages", "drift", "adversarial", "fairness"):
        assert card.index(f"- {untested}") > card.index("Not tested:")


def test_the_card_names_what_the_neurons_reveal_and_what_the_cap_costs() -> None:
    """Without a cap it says nothing of it."""
    before = UncappedChoice(leakage=0.548, valid_score=0.85, price=0.0375)
    cap = LeakageCap(max_leakage=0.4, by_frequency=0.081, known=2000, judged=1500, uncapped={"accuracy": before})
    deep, shallow = (point.model_copy(update={"leakage": share}) for point, share in ((DEEP, 0.382), (SHALLOW, 0.1)))
    choices: dict[Choice, ChoiceSummary] = {"accuracy": deep, "cheapest": shallow}
    training = TrainingSummary(choices=choices, frontier=(shallow, deep), tried=2, cap=cap)
    card = model_card(make_facts(training=training))
    by_name = parse_tables(card)
    assert by_name["depth"]["depth"] == ["compute", "neurons", "words", "eta", "macro_f1", "leakage"]
    assert by_name["depth"]["1"][-1] == "10.0 %"
    assert by_name["choice"]["accuracy (this card)"][-2:] == ["38.2 %", "linear"]
    assert by_name["without the cap"]["accuracy"] == ["54.8 %", "85.0 %", "3.8"]
    assert "The neurons of this choice reveal 38.2 % of the content words of a text, under" in card
    for figure in ("1,500 validation documents", "2,000 training documents", "reveals 8.1 %", "at most 40.0 %"):
        assert figure in card
    assert "eakage" not in model_card(make_facts())


def test_notes_end_the_section_of_the_results() -> None:
    """Also where there are no test documents. Without notes there is no empty list."""
    notes = ["tfidf is left out of the table: MemoryError", "last_layer: fitted on a stratified sample"]
    listed = (
        "\n\n- tfidf is left out of the table: MemoryError\n- last\\_layer: fitted on a stratified sample\n\n## Acc"
    )
    assert f" |{listed}" in model_card(make_facts(notes=notes))
    assert listed in model_card(make_facts(notes=notes, table=[], tested=None, per_class={}, test_ece=None))
    assert parse_tables(model_card(make_facts(notes=notes))) == parse_tables(model_card(make_facts()))
    assert " |\n\n## Accuracy and its cost" in model_card(make_facts())


def test_a_model_hub_reads_the_metadata() -> None:
    """Its reader gets the task, the library and the test results; without test documents there is no result."""
    data = ModelCard(model_card(make_facts(name="tweets: 1\n---", data="s3://bucket/\x00a: b"))).data
    assert (data.pipeline_tag, data.library_name) == ("text-classification", "spin-neurons")
    assert (data.model_name, data.eval_results[0].dataset_name) == ("tweets: 1 ---", "s3://bucket/\ufffda: b")
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    assert results == {"accuracy": 0.75, "f1": 0.725}
    assert "language" not in data.to_dict()
    untested = ModelCard(model_card(make_facts(table=[], tested=None, per_class={}, test_ece=None))).data
    assert untested.eval_results is None


def test_card_text_drops_the_metadata() -> None:
    card = model_card(make_facts())
    assert card.startswith("---\n")
    assert card_text(card).startswith("# tweets\n")
    assert card.endswith(card_text(card))
    assert card_text("# Without metadata\n") == "# Without metadata\n"


def test_a_backslash_does_not_undo_an_escape() -> None:
    """A backslash is escaped itself, so that a bar or a star stays escaped."""
    card = model_card(make_facts(("a\\|b", "c\\*d")))
    assert r"| a\\\|b |" in card
    assert r"| c\\\*d |" in card


def test_the_card_describes_the_choice_in_use() -> None:
    """The share is that of the choice, and its row is marked."""
    by_name = parse_tables(model_card(make_facts(choose="cheapest")))
    assert by_name["figure"]["share of the neurons in the spread of the logits"] == ["50.0 %"]
    assert "cheapest (this card)" in by_name["choice"]
    assert "accuracy" in by_name["choice"]


def test_the_card_says_what_a_choice_reads() -> None:
    """Words beside neurons, words alone, or neurons alone."""
    nothing = Selection({}, {}, 0.0, word_logits=3)
    both, alone, neurons = (
        model_card(make_facts(**changes)) for changes in ({"words": 1234}, {"words": 1234, "selection": nothing}, {})
    )
    assert "Beside its neurons the classifier counts 1,234 words" in both
    assert "The classifier counts 1,234 words" in alone
    assert "reads no neurons: words alone decide" in alone
    assert "layer" not in parse_tables(alone)
    assert "the classifier counts" not in neurons


def test_a_card_without_test_documents_claims_no_results() -> None:
    """It has no table of results and says why."""
    card = model_card(make_facts(table=[], tested=None, per_class={}, test_ece=None, splits=["train", "valid"] * 6))
    assert "There were no test documents" in card
    assert "results above" not in card
    assert "contender" not in parse_tables(card)
    assert parse_tables(card)["figure"]["expected calibration error on test"] == ["not measured"]


@pytest.mark.parametrize(
    ("decision", "multilabel", "expected"),
    [
        (DecisionSettings(), False, "The class with the largest probability."),
        (DecisionSettings(), True, "Every class with a probability of at least one half."),
        (DecisionSettings(thresholds={"a|b": 0.7}), False, r"Thresholds: a\|b from 0.7."),
        (DecisionSettings(abstain=0.1), False, "largest probability. No label within 0.1 of the border."),
        (DecisionSettings(thresholds={"a|b": 0.7, "c": 0.5}), False, r"Thresholds: a\|b from 0.7, c from 0.5."),
    ],
)
def test_the_card_describes_the_decision(decision: DecisionSettings, multilabel: bool, expected: str) -> None:
    """Thresholds and abstention, or the default rule, and whether a document may have several classes."""
    label_space, y = (
        LabelSpace(("a|b", "c"), multilabel),
        np.eye(2, dtype=bool)[np.arange(12) % 2] if multilabel else None,
    )
    card = model_card(
        make_facts(("a|b", "c"), decision=decision, label_space=label_space, **({"y": y} if multilabel else {}))
    )
    assert expected in card
    assert ("may have several classes" in card) == multilabel


def test_the_card_says_that_validation_chose_the_thresholds() -> None:
    """And by which metric, and how they decide."""
    thresholds = {"a|b": 0.7, "c": 0.3}
    facts = make_facts(("a|b", "c"), decision=DecisionSettings(thresholds=thresholds))
    chosen = {name: each.model_copy(update={"thresholds": thresholds}) for name, each in TRAINING.choices.items()}
    assert "Validation documents chose them by" not in model_card(facts)
    card = model_card(replace(facts, training=TRAINING.model_copy(update={"choices": chosen})))
    assert r"Thresholds: a\|b from 0.7, c from 0.3. Validation documents chose them by macro\_f1" in card
    assert "is divided by the threshold of its class; the largest result wins." in card


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=12), min_size=2, max_size=4, unique_by=lambda name: " ".join(name.split())))
def test_any_class_name_is_one_row_of_each_table(names: list[str]) -> None:
    """The row holds its own counts, and only white space and control characters of the name are changed."""
    classes = tuple(f"x{k}{name}" for k, name in enumerate(names))
    by_name = parse_tables(model_card(make_facts(classes)))
    for k, name in enumerate(classes):
        cleaned = " ".join(re.sub(r"[\x00-\x08\x0e-\x1b\x7f]", "\ufffd", " ".join(name.split())).split())
        assert by_name["class 2"][cleaned][-1] == f"{1234 + k:,}"
        assert len(by_name["class"][cleaned]) == 3
    assert len(by_name["class"]) == len(classes) + 2


def test_the_card_says_how_long_texts_are_read() -> None:
    cut = " ".join(model_card(make_facts()).split())
    windows = " ".join(model_card(make_facts(max_windows=16, window_overlap=32)).split())
    assert "It reads the first 1,256 tokens of a text. ##" in cut
    assert (
        "It reads a text in windows of 1,256 tokens, of which each repeats 32 of the one before, up to 16 windows. ##"
        in windows
    )


EXPECTED = QualityEstimate(8900, Estimate(0.8, 0.78, 0.8164), Estimate(0.7, 0.68, 0.7212), ())
QUALITY = {"held_out": 1390, "expected": EXPECTED}
BAND = PromisedBand(abstain=0.1234, coverage=0.832, error=0.031)


def read_trust(**changes: Any) -> dict[str, str]:
    """The points of the section on trust by their names, each in one line."""
    _, _, rest = model_card(make_facts(**changes)).partition("\n## Trust\n\n")
    section, _, _ = rest.partition("\n## ")
    points = [" ".join(point.split()) for point in re.split(r"^- ", section, flags=re.MULTILINE)[1:]]
    pairs = (re.fullmatch(r"\*\*(.+?)\.\*\* (.+)", point) for point in points)
    return {pair[1]: pair[2] for pair in pairs if pair is not None}


def test_the_section_on_trust_names_what_training_knows_and_the_commands_that_measure() -> None:
    """For each of the commands, in this order; the results of audits are in the description of the version."""
    trust = read_trust(**QUALITY)
    assert list(trust) == ["Quality of nights without labels", "Robustness", "Privacy", "Costs"]
    for name, command in (("Robustness", "audit robustness"), ("Privacy", "audit privacy")):
        assert trust[name].startswith(f"Not measured in training. `spin {command}` measures ")
    assert trust["Costs"].startswith(
        "Of the test documents 25.0 % get a wrong label, at 432 documents per second. `spin roi` weighs "
    )
    assert trust["Costs"].endswith("in MLflow, under “Audits”.")
    untested = read_trust(table=[], tested=None, per_class={}, test_ece=None)
    assert untested["Costs"].startswith("Not measured in training. `spin roi` weighs ")


def test_the_card_names_what_the_estimate_of_a_night_rests_on_and_how_wide_its_intervals_are() -> None:
    quality = read_trust(**QUALITY)["Quality of nights without labels"]
    assert quality.startswith("A night estimates the quality of its labels by 1,390 of 3 test documents, whose logits")
    assert "For a night of 10,000 documents like them, the interval of 95 % is expected to be 3.6 points" in quality
    assert "wide for accuracy and 4.1 points for macro-F1." in quality
    assert "withdrawn where labels, scores or neurons of a night drift from training (`classify.max_psi`)" in quality


def test_the_card_says_why_nights_have_no_estimate() -> None:
    """Without test documents, or with too few that get a label."""
    assert read_trust()["Quality of nights without labels"] == (
        "There were no test documents, so a night does not estimate how many of its labels are right."
    )
    few = read_trust(held_out=1390)
    assert "Fewer than 100 of them get a label, which is too few" in few["Quality of nights without labels"]
    unproven = read_trust(held_out=1390, promise=ErrorPromise(0.05, 1390, None))
    assert unproven["Quality of nights without labels"].endswith("one per group of near-identical or related ones.")


def test_the_card_holds_the_promised_error() -> None:
    """Only where one is promised, with its price, or that it cannot be kept."""
    assert "Promised error" not in read_trust(**QUALITY)
    kept, unproven = (
        read_trust(**QUALITY, promise=ErrorPromise(0.05, 1390, band))["Promised error"] for band in (BAND, None)
    )
    assert kept == (
        "`decision.max_error` 0.05: of the labels that are given, at most 5 % are wrong, with 95 % confidence for "
        "documents like the test documents. Of these, 83.2 % get a label, of which 3.1 % are wrong; the others are "
        "within an abstention band of 0.123."
    )
    assert unproven == (
        "`decision.max_error` 0.05 cannot be promised: 1,390 test documents do not prove it. With this setting no "
        "night begins."
    )
