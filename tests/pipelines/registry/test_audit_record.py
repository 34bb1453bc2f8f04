"""The audits of a version: sections of its description, and a run with figures and files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.registry.packaging import DESCRIPTION_LIMIT
from pipelines.registry.version_records import AuditRecord
from tests.support.registry_databases import create_database
from tests.support.registry_fixture import CARD, RegistryFixture


def record(kind: str, summary: str) -> AuditRecord:
    return AuditRecord(kind, summary, {"mean_loss": 0.25}, {}, "<p>")


def test_a_section_is_added_once_and_replaced_later() -> None:
    description = record("robustness", "It loses 3 points.").add_to("# Card\n\ntext")
    assert description == "# Card\n\ntext\n\n## Audits\n\n### robustness\n\nIt loses 3 points."
    both = record("privacy", "It leaks.").add_to(description)
    assert both.endswith("## Audits\n\n### privacy\n\nIt leaks.\n\n### robustness\n\nIt loses 3 points.")
    again = record("robustness", "It loses 1 point.\n\nIt did lose 3.").add_to(both)
    assert again == both.replace("It loses 3 points.", "It loses 1 point.\n\nIt did lose 3.")
    assert record("privacy", "It leaks.").add_to(again) == again
    assert record("roi", "It pays.").add_to(again) == again + "\n\n### roi\n\nIt pays."


def test_a_long_card_makes_room_for_the_audits() -> None:
    """The card loses whole lines; the sections stay whole, however often an audit is repeated."""
    description = CARD[:DESCRIPTION_LIMIT]
    for _ in range(3):
        for kind in ("privacy", "robustness"):
            description = record(kind, f"{kind}: " + "figure " * 60).add_to(description)
    assert len(description) <= DESCRIPTION_LIMIT
    assert len(description) > DESCRIPTION_LIMIT - 200
    card, _, audits = description.partition("\n\n## Audits\n")
    assert card.endswith("… the rest is in artifacts/spin/MODEL_CARD.md")
    assert all(line in CARD.splitlines() for line in card.partition("\n\n…")[0].splitlines())
    assert audits.split().count("figure") == 2 * 60


@pytest.mark.slow
def test_an_audit_is_a_run_of_the_version(backbone_folder: Path, tmp_path: Path) -> None:
    fixture = RegistryFixture(tmp_path, backbone_folder, create_database(tmp_path / "mlflow.db"))
    registry = fixture.registry
    registry.log_audit("1", record("robustness", "It loses 3 points."))
    client = registry.tracking.client
    [run] = client.search_runs([registry.tracking.experiment()], "tags.`spin.audit` = 'robustness'")
    assert run.data.tags["spin.version"] == "1"
    assert run.data.metrics == {"mean_loss": 0.25}
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["robustness.html", "robustness.json"]
    description = client.get_model_version(fixture.name, "1").description
    assert description.startswith("# Model card")
    assert description.endswith("## Audits\n\n### robustness\n\nIt loses 3 points.")
