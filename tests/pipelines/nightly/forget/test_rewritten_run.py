"""Reports of nights that are written again: causes of drift without forgotten documents."""

from __future__ import annotations

from dataclasses import replace

from pipelines.data.forgotten_ids import ForgottenIds
from pipelines.nightly.forget.rewritten_run import without_documents
from pipelines.nightly.report.night_report import NightReport
from pipelines.nightly.report.run_report import report_page
from pipelines.storage.records import from_json
from spin.monitor.drift import Drift, NeuronShift
from tests.pipelines.nightly.report.test_run_report import make_report


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
