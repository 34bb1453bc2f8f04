"""What an attacker reads back from what is stored about the quickstart's evaluation documents."""

from __future__ import annotations

from benchmarks.section_page import Part, table
from benchmarks.trust.champion import Champion
from pipelines.audit.audit_privacy import audit_privacy
from spin.audit.privacy import PrivacyReport
from spin.audit.word_recovery import BANDS


def measure(champion: Champion, *, quick: bool = False) -> PrivacyReport:
    """Attack the evaluation documents; the training is in the folder of the quickstart."""
    return audit_privacy(champion.settings, champion.registry, documents=400 if quick else None).report


def section(report: PrivacyReport) -> Part:
    """The page's section: a row per kind of stored numbers, and whether single documents are betrayed by files."""
    rows = []
    for figure in report.figures:
        bands = [figure.recovery.by_band.get(name) for name in BANDS]
        areas = [figure.attributes.get(name) for name in report.attributes]
        rows.append(
            [
                figure.name,
                f"{figure.numbers:,}",
                f"{100 * figure.recovery.every:.1f} %",
                *("–" if share is None else f"{100 * share:.1f} %" for share in bands),
                *("–" if area is None else f"{area:.2f}" for area in areas),
            ]
        )
    membership, verbatim = report.membership, report.verbatim
    assert membership is not None, "the quickstart has its training in its store"
    assert verbatim is not None
    text = (
        f"An attacker who knows {report.known:,} documents with their numbers reads the content words of "
        f"{report.judged:,} others, out of {report.vocabulary:,}: shares of words that are named, by the number "
        "of known documents that have a word (rare 5 to 9, common 10 to 49, frequent 50 or more). Attributes: areas "
        "under the ROC curve.\n\n"
        + table(["stored", "numbers", "words", *BANDS, *report.attributes], rows)
        + f"\nMembership: losses tell {membership.train_documents:,} training documents from "
        f"{membership.test_documents:,} others with an area under the ROC curve of {membership.auroc:.3f}; the mean "
        f"loss is {membership.train_loss:.3f} and {membership.test_loss:.3f}.\n"
    )
    promise = (
        f"{verbatim.leaked:,} of {verbatim.canaries:,} rare words of single training documents stand in the files of "
        f"the version; of {verbatim.control:,} words of other documents {verbatim.control_found:,} do"
    )
    return text, [(verbatim.leaked * verbatim.control <= verbatim.control_found * verbatim.canaries, promise)]
