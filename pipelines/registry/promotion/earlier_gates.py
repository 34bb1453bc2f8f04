"""The results of earlier gates in MLflow: predictions of former champions, and the attempts before."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipelines.registry.champion_history import ChampionEvent, standing_champions
from pipelines.registry.evaluation_set import EvaluationSet
from pipelines.registry.promotion.subprocess_predict import PredictionReply
from pipelines.registry.versions import Registry
from pipelines.storage.records import from_json, to_json
from pipelines.storage.stage_plan import fingerprint
from spin.settings import Settings

PREDICTIONS = "predictions.json"
"""file of a gate's run: the predictions for the frozen evaluation set of the version and of the champion, by version"""
AFTER, LABELS = "spin.gate.after", "spin.gate.labels"
"""tags of a gate's run: the last move of the champion before it, and the digest of the labels that it compared"""
MOVE = "spin.move"
"""tag of a gate's run: promote or rollback"""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EarlierGates:
    """The results of earlier gates that a gate takes into account."""

    champions: Mapping[str, PredictionReply] = field(default_factory=dict)
    """predictions for the same documents of the champions that count, by version; see `standing_champions`"""
    missing: tuple[str, ...] = ()
    """versions that count as well, and of which no predictions for these documents and settings are stored"""
    tried: frozenset[str] = frozenset()
    """digests of the labels that were compared with this champion"""
    with_others: int = 0
    """number of attempts that were compared with others, before the champion became champion"""

    def without(self, number: str) -> EarlierGates:
        """The same without a version, which is measured anew."""
        champions = {version: reply for version, reply in self.champions.items() if version != number}
        return replace(self, champions=champions, missing=tuple(v for v in self.missing if v != number))


def evaluation_key(settings: Settings, evaluation_set: EvaluationSet) -> str | None:
    """Digest of what predictions depend on besides the version; None if there are no documents.

    It contains the evaluation set, which of the three classifiers is chosen, and whether documents exit early. The
    metric and the decision are not in it: labels are decided, and scored, anew from the stored probabilities and the
    stored thresholds of the version.
    """
    if not evaluation_set:
        return None
    content = evaluation_set.to_json().decode()
    return fingerprint([content, settings.choose, settings.classify.cascade])[:16]


def read_earlier_gates(
    registry: Registry, events: Sequence[ChampionEvent], last_move: str | None, key: str | None
) -> EarlierGates:
    """Read what a gate needs of those before it, given the champion's history and the tag of its last event.

    An attempt is counted by the labels that it gave to the evaluation set and the champion that it met, not by its
    version or its run. To try the same labels again is no further chance to pass by luck: the documents and the samples
    of the bootstrap are the same, and so is the result. That holds for a version that is tried again and for one that
    was trained again with the same outcome. Other labels are a further chance, also where the version is the same and
    its thresholds change. Versions that failed other checks count too: whoever tries many versions picks from all of
    them. So do those that passed, and those before another champion: all are judged by the same documents.
    """
    if last_move is None:
        return EarlierGates()
    gates = [run.data.tags for run in registry.search_runs(f"tags.`{MOVE}` = 'promote'")]
    tried = {(tags[AFTER], tags[LABELS]) for tags in gates if AFTER in tags and LABELS in tags}
    here = frozenset(labels for after, labels in tried if after == last_move)
    champions: dict[str, PredictionReply] = {}
    standing = standing_champions(events)
    for number in standing if key is not None else ():
        for run in _runs_with(number, events, key):
            if (reply := _read_reply(registry, run, number)) is not None:
                champions[number] = reply
                break
    missing = tuple(number for number in standing if number not in champions)
    return EarlierGates(champions, missing, here, len(tried) - len(here))


def predictions_json(replies: Mapping[str, PredictionReply]) -> str:
    """The content of `predictions.json`; it holds no texts."""
    return json.dumps({number: to_json(reply) for number, reply in replies.items()})


def _runs_with(number: str, events: Sequence[ChampionEvent], key: str | None) -> list[str]:
    """The runs of promotions that measured a version under a key, newest first."""
    return [
        event.run
        for event in reversed(events)
        if event.move == "promote" and event.evaluation == key and number in (event.to_version, event.from_version)
    ]


def _read_reply(registry: Registry, run: str, number: str) -> PredictionReply | None:
    """The predictions of a version in a gate's run; None where they are not there, or not readable."""
    text = registry.read_run_file(run, PREDICTIONS)
    if text is None:
        return None
    try:
        reply = json.loads(text).get(number)
        return None if reply is None else from_json(PredictionReply, reply)
    except (ValueError, AttributeError):
        _log.warning("%s of run %s holds no predictions of version %s", PREDICTIONS, run, number, exc_info=True)
        return None
