"""Training under `search.max_leakage`: what it attacks, writes, prints, and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.commands.train_commands import print_training
from pipelines.data.training_labels import Labels, Sample
from pipelines.storage.object_store import Store
from pipelines.storage.stage_plan import read_plan
from pipelines.training import fit_heads
from pipelines.training.extract_features import load_features, open_corpus
from pipelines.training.fit_heads import HeadsJob
from pipelines.training.train import TrainReport
from pipelines.training.workflow import run_stages, run_workflow
from spin import TrainedClassifier
from spin.audit.word_recovery import WordAttack
from spin.errors import UserError
from spin.settings import Settings
from tests.support import many_words, small_training, tiny

pytestmark = pytest.mark.slow

SEARCH = {"etas": [0.5, 0.9], "strengths": [1], "network": "off", "words": "off"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with words beside those that show the class, and a backbone that reads them."""
    folder = tmp_path_factory.mktemp("capped")
    many_words.save_bert(folder / "bert")
    rows = tiny.make_documents(900)
    texts = many_words.add_words([row["text"] for row in rows])
    rows = [{**row, "text": text} for row, text in zip(rows, texts, strict=True)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet", row_group_size=100)
    return folder


def make_settings(folder: Path, store: str, **search: Any) -> Settings:
    return small_training.make_settings(
        folder,
        folder / store,
        search={**SEARCH, **search},
        train={"baselines": False},
        sites=["ffn.01", "resid.02", "ffn.03"],
    )


class Trained:
    """A finished training under a cap, and the job of its heads."""

    def __init__(self, folder: Path) -> None:
        self.settings = make_settings(folder, "capped", max_leakage=0.9)
        jobs: list[HeadsJob] = []
        with pytest.MonkeyPatch.context() as patch:
            run = fit_heads.fit_heads
            patch.setattr(fit_heads, "fit_heads", lambda job, device: (jobs.append(job), run(job, device)))
            self.report: TrainReport = run_workflow(self.settings)
        [self.job] = jobs
        self.spin = TrainedClassifier.open(Path(self.settings.store.uri) / "model", self.settings)


@pytest.fixture(scope="module")
def trained(folder: Path) -> Trained:
    return Trained(folder)


def test_the_leakage_of_a_choice_is_that_of_its_neurons_in_the_texts(trained: Trained) -> None:
    """Computed anew from the texts of the corpus: of validation documents, by an attacker who knows training ones."""
    plan, _, features = load_features(trained.settings)
    labels = Labels.of(features, trained.settings)
    sample, attack = Sample.of(labels.training_data(trained.settings)), trained.job.attack
    assert attack is not None
    rows = [sample.rows[part] for part in (attack.known, attack.judged)]
    assert not set(rows[0]) & set(rows[1])
    assert {labels.splits[row] for part in rows for row in part} == {"train", "valid"}, "and never test"
    corpus = open_corpus(trained.settings, plan)
    texts = [corpus.read_texts(part) for part in rows]
    spin = trained.spin.choosing("accuracy")  # no document exits early
    values = [np.concatenate(list(spin.features(part).columns.values()), axis=1) for part in texts]
    expected = WordAttack.of(texts[0], labels.y[rows[0]], texts[1], labels.label_space).recover(*values).every
    assert expected > attack.by_frequency + 0.05
    assert trained.spin.fitted.summary.leakage == pytest.approx(expected, abs=0.01)  # the store holds float16


def test_the_report_the_card_and_the_terminal_name_leakage_and_price(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    choice = json.loads((Path(trained.settings.store.uri) / "report.json").read_text())["choice"]
    assert choice["cap"]["max_leakage"] == 0.9
    leakage = choice["choices"]["accuracy"]["leakage"]
    assert 0 < leakage <= 0.9
    assert all(0 < point["leakage"] <= 0.9 for point in choice["frontier"])
    card = (Path(trained.settings.store.uri) / "model/MODEL_CARD.md").read_text()
    assert "`search.max_leakage`" in card
    print_training(trained.report)
    assert f"reveals {100 * leakage:.1f} % of the words of a text" in capsys.readouterr().out
    assert trained.spin.training_result.cap == trained.report.results.choice.cap


def test_another_cap_is_refused_until_restart(trained: Trained, folder: Path) -> None:
    for search, message in (({"max_leakage": 0.8}, "is 0.8, was 0.9"), ({}, "is absent, was 0.9")):
        with pytest.raises(UserError, match=rf"search\.max_leakage {message}"):
            run_stages(make_settings(folder, "capped", **search), ["train"])


def test_a_training_without_a_cap_says_nothing_of_one(folder: Path) -> None:
    """Nor is computed what the cap needs."""
    settings = make_settings(folder, "plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spin.integrate.integrate.choose_under_cap", lambda *_: pytest.fail("a cap was applied"))
        run_workflow(settings)
    store = Store.of(settings)
    plan = read_plan(store / "model", dict[str, Any])
    assert plan is not None
    assert "max_leakage" not in plan.metadata["search"]
    for key in ("report.json", "model/config.json", "model/MODEL_CARD.md", "model/manifest.json"):
        content = (store.read(key) or b"").decode()
        assert content
        assert "leakage" not in content
        assert '"cap"' not in content


def test_a_cap_that_nothing_complies_with_ends_the_training_with_what_to_do(folder: Path) -> None:
    with pytest.raises(UserError, match=r"frequency of words alone reveals \d+\.\d % .* set it to 0\.\d+ or more"):
        run_workflow(make_settings(folder, "plain", max_leakage=0.01), restart=True)
