"""Long chains of promotions, with a registry in memory: quality does not decay, and repeated attempts do not help."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import spin.heads.calibration
import spin.integrate.bootstrap
from pipelines.registry.champion_history import ChampionEvent
from pipelines.registry.evaluation_set import EvaluationSet
from pipelines.registry.promotion import gate, gate_checks, judged_version, promote
from pipelines.registry.promotion.gate_checks import CHECKS, Check, CheckResult
from pipelines.registry.promotion.judged_version import Comparison, JudgedVersion, NoReply
from pipelines.registry.promotion.subprocess_predict import PredictionReply
from pipelines.service_errors import UnavailableError
from spin.errors import UserError
from spin.labels.label_space import LabelSpace
from spin.labels.splits import certifies
from spin.settings import DecisionSettings, parse_settings

DOCUMENTS = 4000
TENTH = 400
TREE = {"backbone": {"model": "m"}, "data": {"train": "t"}, "store": "s", "metric": "accuracy"}


class MemoryRegistry:
    """A registry without files: tags, aliases and runs are dictionaries, and versions are predictions.

    A version is given by the documents that it classifies wrongly.
    """

    def __init__(self, store: Path, **settings: Any) -> None:
        promote = {"max_ece": 1.0, **settings.pop("promote", {})}
        self.settings = parse_settings({**TREE, "store": str(store), "promote": promote, **settings})
        self.name = "memory"
        self.model_tags: dict[str, str] = {}
        self.aliases: dict[str, str] = {}
        self.runs: dict[str, tuple[dict[str, str], dict[str, str]]] = {}
        self.versions: dict[str, PredictionReply | NoReply] = {}
        self.freeze(DOCUMENTS)

    def freeze(self, documents: int) -> None:
        """Replace the evaluation set by one of which the gate reads so many documents."""
        self.truth = ["bad" if row % 2 else "good" for row in range(documents)]
        of_gate = (id for id in map(str, count()) if not certifies(id))
        self.frozen = EvaluationSet(
            list(islice(of_gate, documents)), [f"text {row}" for row in range(documents)], self.truth
        )

    def add(self, wrong: Iterable[int], classes: tuple[str, ...] = ("bad", "good")) -> str:
        """Register a version that is wrong on these documents; returns its number."""
        right = np.array([label == "good" for label in self.truth], bool)
        right[np.array(list(wrong), np.int64)] ^= True
        labels = ["good" if good else "bad" for good in right]
        probabilities = np.where(right[:, None], [0.1, 0.9], [0.9, 0.1])
        probabilities = np.pad(probabilities, ((0, 0), (0, len(classes) - 2)))
        number = str(len(self.versions) + 1)
        self.versions[number] = PredictionReply(
            {"text": "string"}, classes, False, list(labels), probabilities, seconds=1.0
        )
        return number

    def evaluation_set(self) -> EvaluationSet:
        return self.frozen

    def champion(self) -> str | None:
        return self.aliases.get("champion")

    def tags(self) -> dict[str, str]:
        return dict(self.model_tags)

    def set_tag(self, name: str, value: str) -> None:
        self.model_tags[name] = value

    def delete_tag(self, name: str) -> None:
        self.model_tags.pop(name, None)  # as MLflow, which does not mind that there is none

    def set_alias(self, alias: str, number: str) -> None:
        self.aliases[alias] = number

    def resolve(self, model: str) -> str:
        return model.rpartition("/")[2]

    def tag_version(self, number: str, prefix: str, tags: Mapping[str, str]) -> None:
        pass

    def log_run(self, name: str, tags: Mapping[str, str], metrics: Any, files: Any) -> str:
        run = uuid.uuid4().hex
        self.runs[run] = tags, files
        return run

    def read_run_file(self, run: str, file: str) -> str | None:
        return self.runs[run][1].get(file) if run in self.runs else None

    def search_runs(self, condition: str) -> list[Any]:
        assert condition == "tags.`spin.move` = 'promote'"
        gates = [tags for tags, _ in self.runs.values() if tags["spin.move"] == "promote"]
        return [SimpleNamespace(data=SimpleNamespace(tags=tags)) for tags in gates]


@pytest.fixture
def fast_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Score on fewer samples."""
    for name, value in (("_VERDICT_DRAWS", 1000), ("_TAIL", 5), ("_MAX_DRAWS", 4000)):
        monkeypatch.setattr(spin.integrate.bootstrap, name, value)
    monkeypatch.setattr(spin.heads.calibration, "_DRAWS", 100)


@pytest.fixture
def registry(fast_bootstrap: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemoryRegistry:
    """An empty registry, whose versions the gate measures at once."""
    monkeypatch.setattr(gate, "_measure", lambda registry, number, texts, settings: registry.versions[number])
    return MemoryRegistry(tmp_path)


def attempt(registry: Any, number: str, *, force: bool = False) -> tuple[ChampionEvent | None, dict[str, CheckResult]]:
    """Try to promote a version; returns the event, None if it failed, and the checks by name."""
    shown: list[tuple[CheckResult, ...]] = []
    event = None
    with suppress(UserError):
        event = promote.promote(registry, number, "try", force=force, on_checks=shown.append)
    return event, {check.name: check for check in shown[0]}


def promote_passing(registry: Any, number: str) -> dict[str, CheckResult]:
    """Promote a version that passes; returns the checks by name."""
    event, checks = attempt(registry, number)
    assert event is not None, {name: check.measured for name, check in checks.items() if not check.passed}
    return checks


def list_failed(checks: Mapping[str, CheckResult]) -> list[str]:
    return [name for name, check in checks.items() if not check.passed]


@pytest.mark.slow
def test_a_chain_of_slightly_worse_versions_ends_at_the_margin(registry: MemoryRegistry) -> None:
    """Each of 15 versions is 0.6 points worse than the champion, which alone is within the margin of 1 point."""
    attempt(registry, registry.add(range(TENTH)))
    wrong = TENTH
    for _ in range(15):
        event, checks = attempt(registry, registry.add(range(wrong + 24)))
        if event is not None:
            wrong += 24
    assert (wrong - TENTH) / DOCUMENTS <= 0.01
    assert wrong > TENTH, "the first is within the margin"
    assert checks["best_champion"].measured == "-1.2, at least -1.6 against version 1, 90.0"
    assert not checks["best_champion"].passed


@pytest.mark.slow
def test_a_chain_of_random_versions_keeps_within_the_margin_and_noise(registry: MemoryRegistry) -> None:
    """A version is 0.3 points worse than the champion on average; compared with that alone, 3 points are lost."""
    draw, documents = np.random.default_rng(1), 2000
    registry.freeze(documents)
    difficulty, expected = draw.random(documents), 0.1
    promote_passing(registry, registry.add(np.flatnonzero(difficulty < expected)))
    for _ in range(14):
        worse = expected + 0.003
        chances = np.where(difficulty < worse, 0.98, 0.02 * worse)
        event, _ = attempt(registry, registry.add(np.flatnonzero(draw.random(documents) < chances)))
        expected = worse if event is not None else expected
    # two versions differ on 0.8 % of the documents: two standard errors of their difference are 0.4 points
    assert expected - 0.1 <= 0.01 + 0.004


@pytest.mark.slow
@pytest.mark.usefixtures("registry")
def test_many_attempts_seldom_pass_by_luck(tmp_path: Path) -> None:
    """In 24 chains of 10 versions that are worse by the margin, 11 have one that passes if none is counted.

    With the attempts counted, 5 % of all chains are expected to have one, 1.2 of 24.
    """
    draw, passed = np.random.default_rng(2), 0
    for chain in range(24):
        registry = MemoryRegistry(tmp_path / str(chain), promote={"max_regression": 0.1})
        registry.freeze(100)
        promote_passing(registry, registry.add(np.flatnonzero(draw.random(100) < 0.2)))
        versions = [registry.add(np.flatnonzero(draw.random(100) < 0.3)) for _ in range(10)]
        passed += any(attempt(registry, number)[0] is not None for number in versions)
    assert passed <= 4  # more have a probability of 1 %


@pytest.mark.slow
@pytest.mark.usefixtures("fast_bootstrap")
def test_all_attempts_together_keep_the_risk() -> None:
    """Of 150 chains of 20 versions that are worse by the margin, at most about 5 % have one that passes.

    Where an attempt spends the risk divided by the number of attempts, 18 % may.
    """
    draw, settings, passed = np.random.default_rng(4), parse_settings(TREE | {"promote": {"max_regression": 0.1}}), 0
    for _ in range(150):
        y = draw.integers(0, 2, 300)
        champion = {judged_version.THE_CHAMPION: np.where(draw.random(300) < 0.2, 1 - y, y)}
        for attempts in range(20):
            version = np.where(draw.random(300) < 0.3, 1 - y, y)
            comparison = Comparison(settings, LabelSpace(("bad", "good")), y, version, champion, attempts)
            if comparison.differences[judged_version.THE_CHAMPION][1] >= -0.1:
                passed += 1
                break
    assert 1 <= passed <= 13  # more have a probability of 2 % where 7.5 are expected


@pytest.mark.slow
@pytest.mark.usefixtures("fast_bootstrap")
@pytest.mark.parametrize(
    ("better", "attempts", "least", "most"), [(0, 0, 35, 60), (0, 9, 2, 16), (20, 0, 93, 100), (20, 9, 60, 84)]
)
def test_the_power_of_the_gate_is_that_of_the_documentation(better: int, attempts: int, least: int, most: int) -> None:
    """Of 100 versions that differ from the champion on 5 % of 2,000 documents, and are as good or 1 point better."""
    draw, settings, y = np.random.default_rng(5), parse_settings(TREE), np.arange(2000) % 2
    shares, passed = [(100 + better) / 4000, (100 - better) / 4000, 0.95], 0
    for _ in range(100):
        right, wrong, _ = draw.multinomial(2000, shares)
        version, champion = y.copy(), y.copy()
        champion[:right] ^= 1
        version[right : right + wrong] ^= 1
        compared = {judged_version.THE_CHAMPION: champion}
        comparison = Comparison(settings, LabelSpace(("bad", "good")), y, version, compared, attempts)
        passed += comparison.differences[judged_version.THE_CHAMPION][1] >= -0.01
    assert least <= passed <= most


@pytest.mark.slow
def test_attempts_are_counted_whatever_becomes_of_the_champion(registry: MemoryRegistry) -> None:
    """The same labels against the same champion count once, of whatever version; all others count for good."""
    promote_passing(registry, registry.add(range(TENTH)))
    worse = registry.add(range(600))

    def read_confidence(number: str) -> str:
        return attempt(registry, number)[1]["regression"].expected.partition("champion, with ")[2]

    assert read_confidence(worse) == read_confidence(worse) == "97.5 % confidence"
    assert read_confidence(registry.add(range(600))) == "97.5 % confidence"  # trained again with the same outcome
    assert read_confidence(registry.add(range(601))) == "99.17 % confidence, after 1 other attempt"
    assert read_confidence(worse) == "99.17 % confidence, after 1 other attempt"
    assert read_confidence(registry.add(range(602))) == "99.58 % confidence, after 2 other attempts"
    registry.settings = registry.settings.model_copy(update={"decision": DecisionSettings(thresholds={"good": 0.95})})
    attempt(registry, worse)  # other labels by other thresholds
    registry.settings = registry.settings.model_copy(update={"decision": DecisionSettings()})
    assert read_confidence(registry.add(range(TENTH + 1))).endswith(", after 3 other attempts")
    assert read_confidence(registry.add(range(603))).endswith(", after 4 other attempts")
    promote.rollback(registry, "complaints")  # type: ignore[arg-type]
    assert read_confidence(registry.add(range(604))).endswith(", after 5 other attempts")
    attempt(registry, registry.add(range(605)), force=True)
    assert read_confidence(worse).endswith(", after 7 other attempts")  # against another champion, so it is another


@pytest.mark.slow
def test_the_seed_changes_no_verdict() -> None:
    """Nor the limit of the calibration error; of a version that a hundredth of a point tells from the margin."""
    y, draw = np.arange(DOCUMENTS) % 2, np.random.default_rng(0)
    champion, version = (np.where(draw.random(DOCUMENTS) < share, 1 - y, y) for share in (0.1, 0.1))
    probabilities = np.tile([[0.95, 0.05], [0.05, 0.95]], (DOCUMENTS // 2, 1))
    names = [["bad", "good"][k] for k in y]
    model, other = (
        PredictionReply({}, ("bad", "good"), False, [["bad", "good"][k] for k in given], probabilities, 1.0)
        for given in (version, champion)
    )
    verdicts = set()
    for seed in range(5):
        judged = JudgedVersion(parse_settings(TREE | {"seed": seed}), names, model, other)
        limits = {check.name: (check.value, check.limit) for check in gate_checks.judge(judged)}
        verdicts.add((limits["regression"], limits["best_champion"], limits["calibration"]))
    assert len(verdicts) == 1


def test_a_version_that_does_not_load_is_no_attempt(registry: MemoryRegistry) -> None:
    """It gave no labels that could have passed by luck."""
    promote_passing(registry, registry.add(range(TENTH)))
    registry.versions["2"] = NoReply("there is no backbone")
    attempt(registry, "2")
    assert attempt(registry, registry.add(range(600)))[1]["regression"].expected.endswith("with 97.5 % confidence")


def make_decay(registry: MemoryRegistry, step: int = 24) -> None:
    """Promote version 1, and version 2 that is worse by 0.6 points, or another step."""
    promote_passing(registry, registry.add(range(TENTH)))
    promote_passing(registry, registry.add(range(TENTH + step)))


@pytest.mark.slow
def test_a_former_champion_counts_when_its_version_is_deleted(registry: MemoryRegistry) -> None:
    """Its predictions are in the run of its promotion."""
    make_decay(registry)
    del registry.versions["1"]
    registry.versions["3"] = registry.versions["2"]  # a number that is free
    number = registry.add(range(TENTH + 48))
    assert list_failed(attempt(registry, number)[1]) == ["best_champion"]


@pytest.mark.slow
def test_a_champion_that_does_not_predict_counts_with_its_stored_predictions(registry: MemoryRegistry) -> None:
    """So a version that replaces it by force is compared with it all the same."""
    make_decay(registry)
    registry.versions["2"] = NoReply("it was changed")
    _, checks = attempt(registry, registry.add(range(TENTH + 48)))
    assert list_failed(checks) == ["regression", "best_champion"]
    event, _ = attempt(registry, registry.add(range(TENTH + 1)), force=True)
    assert event is not None
    assert event.forced == ("regression",)
    _, checks = attempt(registry, registry.add(range(TENTH + 49)))
    assert " against version 1, 90.0" in checks["best_champion"].measured


@pytest.mark.slow
def test_a_loss_that_was_forced_is_the_new_standard(registry: MemoryRegistry) -> None:
    """Later versions need not be forced; a rollback to before the loss restores the former standard."""
    make_decay(registry)
    event, _ = attempt(registry, registry.add(range(600)), force=True)
    assert event is not None
    assert event.forced == ("regression", "best_champion")
    checks = promote_passing(registry, registry.add(range(601)))
    assert " against the champion, 85.0" in checks["best_champion"].measured
    promote.rollback(registry, "too much was lost", "2")  # type: ignore[arg-type]
    _, checks = attempt(registry, registry.add(range(TENTH + 46)))
    assert list_failed(checks) == ["best_champion"]
    assert " against version 1, 90.0" in checks["best_champion"].measured


@pytest.mark.slow
def test_a_version_that_a_rollback_left_does_not_count(registry: MemoryRegistry) -> None:
    """A version that knows the evaluation set by heart is found out in use and must not close the gate."""
    promote_passing(registry, registry.add(range(TENTH)))
    promote_passing(registry, registry.add([]))
    assert list_failed(attempt(registry, registry.add(range(TENTH)))[1]) == ["regression", "best_champion"]
    promote.rollback(registry, "it fails in use")  # type: ignore[arg-type]
    checks = promote_passing(registry, registry.add(range(TENTH - 1)))
    assert " against the champion, 90.0" in checks["best_champion"].measured


@pytest.mark.slow
def test_champions_without_stored_predictions_are_named(registry: MemoryRegistry) -> None:
    """Their promotion stored none, or their runs are gone; those that are there are compared with."""
    make_decay(registry)
    for name, value in registry.model_tags.items():  # as where there was no evaluation set
        event = json.loads(value)
        del event["evaluation"]
        registry.model_tags[name] = json.dumps(event)
    checks = promote_passing(registry, registry.add(range(TENTH + 30)))
    measured = checks["best_champion"].measured
    assert measured.endswith(" against the champion, 89.4; no predictions of version 1 to compare with")
    # the run of that promotion holds the predictions of version 2 as well
    checks = promote_passing(registry, registry.add(range(TENTH + 31)))
    assert " against version 2, 89.4; no predictions of version 1" in checks["best_champion"].measured
    registry.runs.clear()
    _, checks = attempt(registry, registry.add(range(TENTH + 32)))
    assert checks["best_champion"].measured.endswith("no predictions of version 1, 2, 3 to compare with")


@pytest.mark.slow
@pytest.mark.parametrize(
    "content", ["", "[]", '{"1": {}}', '{"1": {"classes": 3}, "2": null}', '{"1": {"error": "no"}}']
)
def test_predictions_that_cannot_be_read_count_as_missing(registry: MemoryRegistry, content: str) -> None:
    make_decay(registry)
    for _, files in registry.runs.values():
        files["predictions.json"] = content
    _, checks = attempt(registry, registry.add(range(TENTH + 48)))
    assert checks["best_champion"].measured.endswith(
        " against the champion, 89.4; no predictions of version 1 to compare with"
    )


@pytest.mark.slow
def test_only_predictions_for_the_same_documents_and_settings_are_compared(registry: MemoryRegistry) -> None:
    """Not those of another evaluation set, nor of another of the three classifiers."""
    make_decay(registry)
    settings = registry.settings
    registry.settings = settings.model_copy(update={"choose": "cheapest"})
    assert "no predictions of version 1 " in attempt(registry, registry.add(range(600)))[1]["best_champion"].measured
    registry.settings = settings
    assert " version 1, 90.0" in attempt(registry, registry.add(range(600)))[1]["best_champion"].measured
    registry.freeze(DOCUMENTS - 2)
    registry.versions["2"] = registry.versions[registry.add(range(TENTH))]
    _, checks = attempt(registry, registry.add(range(TENTH)))
    assert "no predictions of version 1 " in checks["best_champion"].measured
    assert not list_failed(checks)


def test_without_documents_nothing_is_stored_or_compared(registry: MemoryRegistry) -> None:
    registry.freeze(0)
    for _ in range(2):
        promote_passing(registry, registry.add([]))
    assert [event.evaluation for event in promote.history(registry)] == [None, None]  # type: ignore[arg-type]
    assert all(set(files) == {"gate.json"} for _, files in registry.runs.values())


class Certainty(Check):
    """The mean probability of the labels that the version gives."""

    name = "certainty"

    def judge(self, version: JudgedVersion) -> CheckResult:
        certainty = float(version.model.probabilities.max(axis=1).mean())
        return CheckResult(
            self.name,
            value=certainty,
            limit=0.95,
            measured=f"{certainty:.2f}",
            expected="at least 0.95",
            remedy="train on more documents",
            figures={"certainty": certainty},
        )


@pytest.mark.slow
def test_a_check_that_is_added_holds_a_version_back_until_it_is_forced(
    registry: MemoryRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its result is shown, logged with its figure, and named in the history."""
    attempt(registry, registry.add(range(TENTH)))
    monkeypatch.setattr(gate_checks, "CHECKS", (*CHECKS, Certainty()))
    number = registry.add(range(TENTH))
    event, checks = attempt(registry, number)
    assert event is None
    assert list_failed(checks) == ["certainty"]
    [logged] = [files for tags, files in registry.runs.values() if tags["spin.gate.passed"] == "false"]
    content = json.loads(logged["gate.json"])
    assert content["checks"][-1]["found"] == "0.90"
    assert content["figures"]["certainty"] == pytest.approx(0.9)
    event, _ = attempt(registry, number, force=True)
    assert event is not None
    assert event.forced == ("certainty",)


@pytest.mark.parametrize("failing", ["set_tag", "champion", "set_alias"])
@pytest.mark.parametrize("effect", [False, True], ids=["before it", "after it"])
def test_a_move_that_failed_is_not_in_the_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, effect: bool
) -> None:
    """The registry does not answer a request, which may have had its effect all the same, and answers the next one."""
    registry: Any = MemoryRegistry(tmp_path)
    monkeypatch.setattr(promote, "run_gate", lambda *_: gate.GateReport(()))
    promote.promote(registry, "1", "the first")
    fail_once(registry, failing, effect=effect, monkeypatch=monkeypatch)
    with pytest.raises(UnavailableError, match=f"no answer to {failing}"):
        promote.promote(registry, "2", "the second")
    moved = failing == "set_alias" and effect
    assert [event.to_version for event in promote.history(registry)] == ["1", "2"][: 1 + moved]
    assert registry.champion() == ("2" if moved else "1")
    if not moved:
        assert promote.promote(registry, "2", "once more").from_version == "1"


def test_the_error_of_a_move_is_shown_though_its_event_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The event that stays is named in the log."""
    registry: Any = MemoryRegistry(tmp_path)
    monkeypatch.setattr(promote, "run_gate", lambda *_: gate.GateReport(()))
    for failing in ("set_alias", "delete_tag"):
        fail_once(registry, failing, effect=False, monkeypatch=monkeypatch)
    with pytest.raises(UnavailableError, match="no answer to set_alias"):
        promote.promote(registry, "1", "the first")
    [tag] = registry.tags()
    assert f"the tag {tag} names a move to version 1 that may have failed" in caplog.text
    assert "no answer to delete_tag" in caplog.text


def fail_once(registry: Any, method: str, *, effect: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first call of a method fail from when an event is written; with `effect`, it does its work before."""
    original, writing, failed = getattr(registry, method), registry.set_tag, list[str]()
    started = [method] if method == "set_tag" else list[str]()

    def start(*args: Any) -> None:
        started.append(method)
        writing(*args)

    def fail(*args: Any) -> Any:
        if not started or failed:
            return original(*args)
        failed.append(method)
        if effect:
            original(*args)
        raise UnavailableError(f"no answer to {method}")

    monkeypatch.setattr(registry, "set_tag", start)
    monkeypatch.setattr(registry, method, fail)
