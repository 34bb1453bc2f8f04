"""The gate: what a version and the champions predict on the frozen evaluation set, and the checks that judge it."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.registry.evaluation_set import EvaluationSet
from pipelines.registry.promotion.earlier_gates import EarlierGates
from pipelines.registry.promotion.gate_checks import CheckResult, judge, judge_loading
from pipelines.registry.promotion.judged_version import JudgedVersion, NoReply, Reply
from pipelines.registry.promotion.subprocess_predict import PredictionReply, predict_in_subprocess
from pipelines.registry.versions import Registry
from pipelines.service_errors import StalledError
from pipelines.workers.weights_cache import with_engine
from spin.audit.perturbations import mix_perturbations
from spin.errors import UserError
from spin.settings import Settings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GateReport:
    """All checks of a version."""

    checks: tuple[CheckResult, ...]
    labels_digest: str = ""
    """of the version's labels for the evaluation set; empty where they were compared with no champion"""
    predictions: Mapping[str, PredictionReply] = field(default_factory=dict)
    """by version, for the evaluation set: those of the version and of the champion, as far as they predict"""

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        return tuple(check for check in self.checks if not check.passed)

    @property
    def figures(self) -> Mapping[str, float]:
        """Metrics of the gate's MLflow run by name; `score` and, with a champion, `score_before` among them."""
        return {name: figure for check in self.checks for name, figure in check.figures.items()}

    @property
    def measured_score(self) -> str | None:
        """The figure `score` in words; None where it was not measured."""
        return next((check.measured for check in self.checks if "score" in check.figures), None)


def run_gate(
    registry: Registry, number: str, champion: str | None, evaluation_set: EvaluationSet, earlier: EarlierGates
) -> GateReport:
    """Check a version against its limits, the champion and the best champion, on the same documents.

    The version and the champion are measured now, each loaded in a fresh process as MLflow's users load it; for former
    champions the predictions serve that earlier gates have stored. Labels are decided by the `choose` and `decision` of
    the registry's settings, as in a night, and not by the settings that were saved with the version; a class without a
    threshold there has the one that the training of the version chose. Where a night would abstain, the label that it
    would give without the abstention band counts. Raises StalledError for a version that takes longer than
    `promote.timeout_seconds`; a champion that does is one that does not predict.
    """
    settings, unproven = settle_promise(registry, number)
    reply = _measure(registry, number, evaluation_set.texts, settings)
    replies: dict[str, Reply] = {number: reply}
    perturbed = None
    if champion is not None:
        replies[champion] = _measure_champion(registry, champion, evaluation_set.texts)
        if isinstance(replies[champion], PredictionReply):
            earlier = earlier.without(champion)
        perturbed = _measure_perturbed(registry, number, champion, evaluation_set, settings)
    predictions = {version: r for version, r in replies.items() if isinstance(r, PredictionReply)}
    predictions = predictions if evaluation_set else {}
    if isinstance(reply, NoReply):
        return GateReport((judge_loading(reply),), predictions=predictions)
    of_champion = None if champion is None else replies[champion]
    version = JudgedVersion(
        registry.settings,
        evaluation_set.labels,
        reply,
        of_champion,
        earlier,
        perturbed,
        unproven,
        evaluation_set.group_hashes,
    )
    return GateReport((judge_loading(reply), *judge(version)), version.labels_digest, predictions)


def check_loads(registry: Registry, number: str) -> GateReport:
    """Check only that a version loads in a fresh process and predicts. Raises StalledError as `run_gate`."""
    return GateReport((judge_loading(_measure(registry, number, [], settle_promise(registry, number)[0])),))


def settle_promise(registry: Registry, number: str) -> tuple[Settings, str | None]:
    """The registry's settings with the abstention band of a version in place of `max_error`.

    Where its test documents prove no band there is none, and the reason is returned too.
    """
    settings = registry.settings
    if settings.decision.max_error is None:
        return settings, None
    try:
        decision, reason = registry.load(number).decision, None
    except UserError as error:
        decision, reason = settings.decision.without_promise(), str(error)
    return settings.model_copy(update={"decision": decision}), reason


def _measure_perturbed(
    registry: Registry, number: str, champion: str, evaluation_set: EvaluationSet, settings: Settings
) -> tuple[Reply, Reply] | None:
    """The predictions of a version and of the champion for perturbed texts; None where they are not compared."""
    if settings.promote.max_robustness_loss is None or not evaluation_set:
        return None
    texts = mix_perturbations(evaluation_set.texts)  # always the same ones: the seed of the settings decides nothing
    return _measure(registry, number, texts, settings), _measure_champion(registry, champion, texts)


def _measure(registry: Registry, number: str, texts: Sequence[str], settings: Settings) -> Reply:
    """The predictions of a version, decided as `settings` say: those of the registry, with a band of the version."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            model = registry.download_model(number, Path(folder))
            return predict_in_subprocess(model, texts or ["Does it predict?"], with_engine(settings, "classify"))
        except UserError as error:
            _log.debug("version %s of %s does not predict", number, registry.name, exc_info=True)
            return NoReply(str(error))
        except StalledError as error:
            raise StalledError(f"version {number} of {registry.name} {error}") from None


def _measure_champion(registry: Registry, number: str, texts: Sequence[str]) -> Reply:
    """The predictions of a champion; one that hangs does not keep a version from being promoted with --force."""
    try:
        return _measure(registry, number, texts, settle_promise(registry, number)[0])
    except StalledError as error:
        return NoReply(str(error))
