"""`spin audit privacy`: attack what is stored about the documents of the frozen evaluation set."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pipelines.audit.audited_version import AuditedVersion, open_audited
from pipelines.data.corpus import Corpus
from pipelines.data.training_labels import FrozenDocuments, Labels
from pipelines.registry.packaging import BACKBONE
from pipelines.registry.version_records import AuditRecord
from pipelines.registry.versions import Registry
from pipelines.storage.object_store import Store
from pipelines.storage.stage_plan import finished_fingerprint
from pipelines.training.extract_features import load_features, open_corpus
from pipelines.workers.progress import progress
from spin.activations.extract import extract
from spin.arrays import Floats, Rows
from spin.audit.privacy import FREQUENCY, Membership, PrivacyReport, measure_privacy, privacy_page
from spin.audit.verbatim import VerbatimLeaks, find_verbatim
from spin.backbone.loading import load_backbone
from spin.classifier import feature_columns
from spin.errors import UserError
from spin.heads.calibration import log_losses
from spin.labels.label_space import Targets
from spin.labels.splits import rows_in_split
from spin.pages.number_format import counted
from spin.settings import Settings
from spin.sites import FeatureColumn

LAST, EVERY, KEPT = "last layer", "all feature columns", "selected neurons"
RANDOM, FEW, SCORES = "random neurons, as many", "a fifth of the selected neurons", "probabilities of the classes"
_LEAST = 100
"""evaluation documents that an attack needs"""
_MEMBERS = 2000
"""training documents whose losses are compared, at most"""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrivacyAudit:
    """The privacy of one version: how much the numbers stored for it reveal."""

    report: PrivacyReport
    record: AuditRecord
    """the record that is kept with the version"""


def audit_privacy(
    settings: Settings, registry: Registry, *, model: str | None = None, documents: int | None = None
) -> PrivacyAudit:
    """Attack what the store of a version holds, by default of the champion, and log the result with it.

    `documents` are the number of evaluation documents that are drawn, by default all; half of them are the attacker's.
    Raises UserError where no evaluation set is frozen, or it has fewer than 100 documents, or too few words that can be
    looked for, or the version does not know one of its classes.
    """
    audited = open_audited(registry, model, documents)
    if len(audited.texts) < _LEAST:
        raise UserError(
            f"found {len(audited.texts):,} evaluation documents; expected at least {_LEAST}, of which half are the "
            "attacker's"
        )
    training = _read_training_documents(settings, registry, audited)
    membership = None if training is None else _measure_membership(audited, training, settings.seed)
    verbatim = None if training is None else _search_files(registry, audited, training)
    stored = _stored_numbers(settings, audited)
    with progress("audit", len(stored), "attacks") as advance:
        report = measure_privacy(
            audited.texts,
            audited.y,
            audited.spin.label_space,
            stored,
            membership=membership,
            verbatim=verbatim,
            seed=settings.seed,
            progress=advance,
        )
    record = _record(registry.name, audited.number, report)
    registry.log_audit(audited.number, record)
    return PrivacyAudit(report, record)


def _record(model: str, version: str, report: PrivacyReport) -> AuditRecord:
    metrics = {
        f"recovered_{figure.name.replace(' ', '_').replace(',', '')}": figure.recovery.every
        for figure in report.figures
    }
    if report.membership is not None:
        metrics["membership_auroc"] = report.membership.auroc
    content = {"model": model, "version": version, **asdict(report)}
    page = privacy_page(report, f"Privacy of {model}, version {version}")
    return AuditRecord("privacy", _summarise(report), metrics, content, page)


def _summarise(report: PrivacyReport) -> str:
    """The main figures in some sentences."""
    shares = {figure.name: f"{100 * figure.recovery.every:.0f} %" for figure in report.figures}
    recovered = ", ".join(f"{shares[name]} from {name}" for name in (FREQUENCY, LAST, EVERY, KEPT) if name in shares)
    text = f"Of the content words of a text, an attacker recovers {recovered} ({counted(report.judged, 'document')})."
    if report.membership is not None:
        auroc = report.membership.auroc
        text += f" Losses tell training documents from others with an area under the curve of {auroc:.2f}."
    if report.verbatim is not None:
        text += (
            f" Of {report.verbatim.canaries:,} words of single training documents, {report.verbatim.leaked:,} "
            "stand in the files of the version."
        )
    return text


def _stored_numbers(settings: Settings, audited: AuditedVersion) -> dict[str, Floats]:
    """The numbers (n, d) of texts in a feature store or a table of predictions, by name, and as many random neurons."""
    spin, texts = audited.spin, audited.texts
    backbone = load_backbone(spin.settings, expect_digest=spin.backbone_digest, scales=spin.scales)
    selection = spin.fitted.selection
    columns = sorted({*feature_columns(backbone, settings.sites, settings.poolings), *selection.neurons})
    last = [FeatureColumn(backbone.final_site, pooling) for pooling in dict.fromkeys(c.pooling for c in columns)]
    with progress("extract", len(texts), "documents") as advance:
        values = extract(backbone, texts, [*columns, *last], progress=advance).columns
    every = np.concatenate([values[column] for column in columns], axis=1)
    stored: dict[str, Floats] = {LAST: np.concatenate([values[column] for column in last], axis=1), EVERY: every}
    if selection.neuron_count:
        kept = np.concatenate([values[c][:, neurons] for c, neurons in selection.neurons.items()], axis=1)
        importance = np.concatenate([selection.importance[c] for c in selection.neurons])
        fifth = np.argsort(-importance, kind="stable")[: max(1, len(importance) // 5)]
        draw = np.random.default_rng(settings.seed)
        random = draw.choice(every.shape[1], min(every.shape[1], kept.shape[1]), replace=False)
        stored |= {KEPT: kept, RANDOM: every[:, random], FEW: kept[:, fifth]}
    return stored | {SCORES: spin.predict_proba(texts)}


@dataclass(frozen=True)
class _TrainingDocuments:
    """Documents that a version was trained on."""

    corpus: Corpus
    rows: Rows
    """in the corpus"""
    y: Targets
    """of these rows"""

    @property
    def texts(self) -> Iterator[str]:
        """The texts of all, those of one shard in memory at a time."""
        return (text for block in self.corpus.text_blocks(self.rows) for text in block)


def _read_training_documents(
    settings: Settings, registry: Registry, audited: AuditedVersion
) -> _TrainingDocuments | None:
    """The documents that a version learned from; None where the store of the settings does not hold its training."""
    trained = registry.training_report(audited.number).get("fingerprint")
    if trained is None or trained != finished_fingerprint(Store.of(settings) / "model"):
        _log.warning(
            "version %s was not trained in %s: what needs its documents is left out", audited.number, settings.store.uri
        )
        return None
    try:
        plan, _, features = load_features(settings)
    except UserError as error:
        _log.warning("the training documents cannot be read, and what needs them is left out: %s", error)
        return None
    frozen = FrozenDocuments.of(frozenset(audited.frozen.ids), audited.frozen.texts)
    labels = Labels.of(features, settings, frozen)
    rows = rows_in_split(labels.splits, "train", "valid")  # few labels are one pool, and words learn from both
    return _TrainingDocuments(open_corpus(settings, plan), rows, labels.y[rows])


def _measure_membership(audited: AuditedVersion, training: _TrainingDocuments, seed: int) -> Membership:
    """Compare the losses of documents that the version learned from with those of the evaluation set."""
    spin = audited.spin
    chosen = np.sort(np.random.default_rng(seed).permutation(len(training.rows))[:_MEMBERS])
    members = training.corpus.read_texts(training.rows[chosen])
    return Membership.of(
        log_losses(spin.predict_logits(members), training.y[chosen], spin.label_space),
        log_losses(spin.predict_logits(audited.texts), audited.y, spin.label_space),
    )


def _search_files(registry: Registry, audited: AuditedVersion, training: _TrainingDocuments) -> VerbatimLeaks:
    """Look for words of single training documents in all that is registered of a version, but for the backbone."""
    with tempfile.TemporaryDirectory() as folder:
        model = registry.download_model(audited.number, Path(folder))
        files = {
            path.relative_to(model).as_posix(): path.read_bytes()
            for path in sorted(model.rglob("*"))
            if path.is_file() and BACKBONE not in path.relative_to(model).as_posix()
        }
    files["report.json"] = json.dumps(registry.training_report(audited.number)).encode()
    tokens = audited.spin.backbone.tokenizer.get_vocab()
    common = {token.lstrip("#Ġ▁").lower() for token in tokens}
    return find_verbatim(training.texts, audited.frozen.texts, files, common)
