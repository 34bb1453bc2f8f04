"""Nights that are written again: their reports, without forgotten documents, and errors of the store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.data.forgotten_ids import ForgottenIds
from pipelines.nightly.forget.rewritten_run import Rewriting, find_held, without_documents
from pipelines.nightly.report.night_report import NightReport
from pipelines.nightly.report.run_report import report_page
from pipelines.nightly.tables.night_history import list_nights
from pipelines.nightly.tables.night_tables import NightTables
from pipelines.nightly.tables.publication import published_files
from pipelines.service_errors import UnavailableError
from pipelines.storage.object_store import Store
from pipelines.storage.records import from_json
from spin.errors import SpinError, UserError
from spin.monitor.drift import Drift, NeuronShift
from tests.pipelines.nightly.report.test_run_report import make_report
from tests.support.nights import claim_model, run_night
from tests.support.unreadable_files import READ_ERRORS, UnreadableFile


def test_causes_of_drift_name_no_forgotten_document() -> None:
    shifts = (
        NeuronShift("ffn.01.mean", 3, 0.9, documents=("Xyzzy-1", "other", "Xyzzy-2"), words=("word",)),
        NeuronShift("ffn.01.mean", 4, 0.8, documents=("other",)),
    )
    drift = Drift(name="neurons", psi=1.0, limit=0.1, now=(2, 3), then=(), moved=shifts, drifted=True)
    report = replace(from_json(NightReport, make_report()), drift=(drift,))
    left = without_documents(report, ForgottenIds.of(["Xyzzy-1", "Xyzzy-2"]))
    assert [shift.documents for shift in left.drift[0].moved] == [("other",), ("other",)]
    assert left.drift[0].moved[0].words == ("word",)
    assert "Xyzzy-1" in report_page(report)
    assert "Xyzzy" not in report_page(left)
    assert without_documents(report, ForgottenIds.of(["unknown"])) == report


def test_the_page_says_how_many_predictions_were_removed() -> None:
    report = from_json(NightReport, make_report())
    assert "spin forget" not in report_page(report)
    assert "2 predictions removed since by <code>spin forget</code>" in report_page(replace(report, forgotten=2))


@pytest.mark.parametrize("failure", READ_ERRORS)
def test_an_error_of_the_store_while_a_night_is_rewritten_is_no_defect(
    failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a SpinError is understood where another command has taken over, and deleted the file."""
    out = Store(str(tmp_path / "out"))
    run_night(out, ["a", "b"])
    tables, forgotten = NightTables(out), ForgottenIds.of(["a"])
    [night] = list_nights(tables)
    files = published_files(tables, date=night.date, model=night.model, run=night.run)
    held, claim = find_held(tables, files, forgotten), claim_model(tables)
    monkeypatch.setattr(Store, "open", lambda store, key: UnreadableFile(READ_ERRORS[failure]))
    expected: type[SpinError] = UserError if failure == "gone" else UnavailableError
    with pytest.raises(expected, match=f"/{night.run}/"):
        find_held(tables, files, forgotten)
    with pytest.raises(expected, match=f"/{night.run}/"):
        Rewriting(tables, night, files, held, forgotten).publish(claim)
