"""The goals, and whether a run reached them."""

from __future__ import annotations

from benchmarks.gpu.results import Results
from benchmarks.gpu.speed_rounds import SPIN
from benchmarks.section_page import Verdict

SHARE = 0.35
"""of the rate of matrix products, for every shape and distribution of lengths"""
RATE = 0.7e6
"""tokens per second of BERT-base on `CARD`, for either distribution of lengths"""
CARD = "H100"
_RATED = "BERT-base"


def judge(results: Results) -> list[Verdict]:
    """Whether each goal is reached by the slower distribution of lengths; none is judged without a GPU."""
    if not results.on_gpu:
        return []
    verdicts = []
    for shape in dict.fromkeys(speed.shape for speed in results.speeds):
        slowest = min((s for s in results.speeds if s.shape == shape), key=results.share)
        text = f"{shape}: {results.share(slowest):.1%} of the rate of matrix products ({slowest.workload})"
        verdicts.append((results.share(slowest) >= SHARE, f"{text}, goal {SHARE:.0%}"))
    rates = {s.workload: s.speeds[SPIN].rate for s in results.speeds if s.shape == _RATED}
    if rates and CARD in results.machine.device:
        slowest_name = min(rates, key=lambda name: rates[name])
        text = f"{_RATED} on an {CARD}: {rates[slowest_name] / 1e6:.2f} million tokens per second ({slowest_name})"
        verdicts.append((rates[slowest_name] >= RATE, f"{text}, goal {RATE / 1e6:g} million"))
    return verdicts
