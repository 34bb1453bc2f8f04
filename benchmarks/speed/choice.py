"""The choice among our settings by the validation documents alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.speed.contender import OurSetting


@dataclass(frozen=True)
class Validation:
    """How a contender does on the validation documents."""

    score: float
    """macro-F1, from 0 to 1"""
    seconds: float
    """for all of them"""


def fastest_reaching(tried: Mapping[OurSetting, Validation], target: float) -> OurSetting | None:
    """The fastest of our settings whose validation score reaches a target, None if none does."""
    reaching = [setting for setting, validation in tried.items() if validation.score >= target]
    return min(reaching, key=lambda setting: tried[setting].seconds, default=None)


def frontier(tried: Mapping[OurSetting, Validation]) -> list[OurSetting]:
    """The settings that no other one beats in score and speed at once, in their order."""
    return [s for s in tried if fastest_reaching(tried, tried[s].score) == s]


def best_setting(tried: Mapping[OurSetting, Validation]) -> OurSetting | None:
    """The setting with the highest validation score, of equals the fastest; None if there are none."""
    return max(tried, key=lambda setting: (tried[setting].score, -tried[setting].seconds), default=None)


def chosen_settings(tried: Mapping[OurSetting, Validation], targets: Iterable[float]) -> list[OurSetting]:
    """The settings that are chosen for some targets, and the one with the highest score, each once."""
    chosen = [fastest_reaching(tried, target) for target in targets]
    return list(dict.fromkeys(setting for setting in (*chosen, best_setting(tried)) if setting is not None))


def distinct(settings: Sequence[OurSetting], fitted: Mapping[OurSetting, object]) -> list[OurSetting]:
    """The settings without those whose classifier, as in `fitted`, equals that of an earlier one."""
    kept: list[OurSetting] = []
    for setting in settings:
        if all(fitted[other] != fitted[setting] for other in kept):
            kept.append(setting)
    return kept
