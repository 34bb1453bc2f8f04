"""The model card: how a classifier was trained, its quality, and for what it was not tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from spin.fitted.abstention import RISK, ErrorPromise
from spin.fitted.fitted_classifier import TrainingSummary
from spin.heads.selection import Selection
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.metrics import ClassFigures
from spin.labels.splits import SPLITS, rows_in_split
from spin.monitor.drift_statistics import list_breaking
from spin.monitor.quality import LEAST_DOCUMENTS, QualityEstimate
from spin.pages.rendering import one_line, render
from spin.settings import Choice, DecisionSettings
from spin.sites import exit_name

CARD = "MODEL_CARD.md"
"""name of the file"""
NIGHT = 10_000
"""documents of the night for which the card expects intervals"""
_LIBRARY = "spin-neurons"
_TAGS = ["text-classification", "probing", "sparsity", "interpretability"]


@dataclass(frozen=True)
class ScoreInterval:
    """The interval of a score with 95 % confidence, by the bootstrap over the test documents."""

    low: float
    high: float
    difference_low: float
    """low end of the interval of this score minus that of the row `spin`, on the same documents"""
    difference_high: float

    @property
    def like_spin(self) -> bool:
        """Whether the score cannot be told apart from that of the row `spin`."""
        return self.difference_low <= 0 <= self.difference_high


@dataclass(frozen=True)
class ContenderResult:
    """The quality of a classifier on the test documents, and its cost: a row of the table in `report.json`."""

    name: str
    accuracy: float
    accuracy_interval: ScoreInterval
    macro_f1: float
    macro_f1_interval: ScoreInterval
    documents: int
    """test documents, on which it was measured"""
    neurons: int
    """neurons that it reads; 0 for a classifier that reads none"""
    neurons_of: int
    """neurons of the backbone that were probed"""
    words: int
    """words, word pairs and strings of characters that it counts; 0 for a classifier that reads no words"""
    depth: int
    """blocks of the backbone that run"""
    depth_of: int
    """blocks of the backbone"""
    docs_per_s: float
    """documents per second, from text to label"""


@dataclass(frozen=True)
class Comparison:
    """The quality of the classifiers on the test documents; empty if there are none."""

    table: tuple[ContenderResult, ...]
    """one row per classifier and baseline"""
    per_class: Mapping[str, ClassFigures]
    """of the most accurate classifier, by class name"""
    test_ece: float | None
    """its expected calibration error, from 0 to 1; None without test documents"""
    test_ece_limit: float | None = None
    """the error that exact probabilities exceed by chance in 5 % of such test sets; None without test documents"""
    notes: tuple[str, ...] = ()
    """sentences on the results: documents left out for a near-identical text, baselines that are missing from the
    table or were fitted on a sample, labels that were not checked"""


@dataclass(frozen=True, kw_only=True)
class CardFacts(Comparison):
    """The facts of a model card."""

    name: str
    purpose: str
    """one sentence: which classes the classifier distinguishes, in what kind of text"""
    data: str
    """URI of the corpus"""
    fingerprint: str
    """fingerprint of the files of the corpus and of what was read from them"""
    label_space: LabelSpace
    y: Targets
    """targets of all documents"""
    splits: Sequence[str]
    """split of each document"""
    backbone: str
    """hub id, folder, or path in a package"""
    digest: str
    """digest of the weights and the tokenizer of the backbone"""
    max_tokens: int
    """tokens of a text, or of a window of it, that the backbone reads at most"""
    metric: str
    """measure of the scores in the tables, by which thresholds and exits were chosen on the validation documents"""
    tested: ContenderResult | None
    """the row of `table` that the card is about, None without test documents"""
    training: TrainingSummary
    choose: Choice
    """the choice that the rest of the card is about"""
    selection: Selection
    """the neurons that this choice reads"""
    words: int
    """words, word pairs and strings of characters that this choice counts in a text"""
    decision: DecisionSettings
    versions: Mapping[str, str]
    """versions of the libraries, by name"""
    max_windows: int | None = None
    """windows of a text that the backbone reads at most, None where long texts are cut"""
    window_overlap: int = 0
    """tokens of a window that the next one repeats"""
    precision: str = ""
    """a clause on the trial of int8, empty where it was not tried"""
    held_out: int = 0
    """test documents whose logits and classes the version carries; each is independent of the others"""
    expected: QualityEstimate | None = None
    """the quality that a night of `NIGHT` documents like these is expected to estimate; None where there is none"""
    promise: ErrorPromise | None = None
    """the proof of `decision.max_error`; None where it is not set"""


def model_card(facts: CardFacts) -> str:
    """The card as Markdown with YAML metadata."""
    chosen = facts.training.choices[facts.choose]
    body = render(
        "spin.pages/model_card.md.j2",
        facts=facts,
        split_names=SPLITS,
        class_counts=_class_counts(facts),
        split_counts=[list(facts.splits).count(split) for split in SPLITS],
        chosen=chosen,
        exits=[f"{100 * e.valid_share:.0f} % {exit_name(e.depth)}" for e in chosen.exits],
        neurons=_count_neurons(facts.selection),
        confidence=1 - RISK,
        night=NIGHT,
        least_labelled=LEAST_DOCUMENTS,
        breaking_drift=list_breaking(),
    )
    return str(ModelCard(f"---\n{_metadata(facts).to_yaml()}\n---\n\n{body}"))


def card_text(card: str) -> str:
    """A card without its metadata, for a reader that would show them as text."""
    return ModelCard(card).text.lstrip("\n") if card.startswith("---\n") else card


def _metadata(facts: CardFacts) -> ModelCardData:
    """The metadata that a model hub indexes; the language of the corpus is not known."""
    results = None
    if facts.tested is not None:
        metrics = {"accuracy": facts.tested.accuracy, "f1": facts.tested.macro_f1}
        results = [
            EvalResult(
                task_type="text-classification",
                dataset_type="custom",
                dataset_name=one_line(facts.data),
                dataset_split="test",
                metric_type=metric,
                metric_value=value,
                metric_name="macro F1" if metric == "f1" else metric,
            )
            for metric, value in metrics.items()
        ]
    return ModelCardData(
        library_name=_LIBRARY,
        pipeline_tag="text-classification",
        tags=list(_TAGS),
        metrics=["accuracy", "f1"],
        model_name=one_line(facts.name),
        eval_results=results,
    )


def _class_counts(facts: CardFacts) -> dict[str, list[int]]:
    """The number of documents per class and split."""
    indicator = facts.label_space.indicator(facts.y)
    rows = [rows_in_split(facts.splits, name) for name in SPLITS]
    return {
        name: [int(indicator[split_rows, k].sum()) for split_rows in rows]
        for k, name in enumerate(facts.label_space.classes)
    }


def _count_neurons(selection: Selection) -> dict[int, dict[str, int]]:
    """The number of selected neurons by layer, and then by kind of site and pooling, such as `ffn mean`."""
    names = sorted(f"{column.site.kind} {column.pooling}" for column in selection.neurons)
    table = {layer: dict.fromkeys(names, 0) for layer in sorted(column.site.layer for column in selection.neurons)}
    for column, neurons in selection.neurons.items():
        table[column.site.layer][f"{column.site.kind} {column.pooling}"] = len(neurons)
    return table
