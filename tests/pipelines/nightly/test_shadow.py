"""Nights with a shadow, without Ray: the night is as without one, and the shadow says what it says alone."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest
import torch
from transformers import BertModel

from jobs import cli
from pipelines.nightly import classify
from pipelines.nightly.classify_step import ClassifyStep
from pipelines.nightly.run_records import RunManifest
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import ShardLog
from pipelines.workers.fault_isolation import MAX_CRASHES
from pipelines.workers.map_shards import map_shards
from spin.classifier import SpinClassifier
from spin.errors import UserError
from spin.monitor.agreement import ShadowAgreement, count_agreement, total_agreement
from spin.settings import BackboneSettings, ProbeSettings, SearchSettings
from spin.shared_pass import SharedPass
from tests.pipelines.nightly.test_classify import DATE, Place, during
from tests.support import chaos, tiny
from tests.support.browser import open_page
from tests.support.chaos import FolderRegistry

Row = dict[str, Any]
CLASSES = ("good", "bad", "plain")
SHALLOW, DEEP, ELSEWHERE, LISTS, OTHER_LISTS = "12345"
PAIRS = [(SHALLOW, DEEP), (DEEP, SHALLOW), (SHALLOW, ELSEWHERE), (LISTS, OTHER_LISTS)]


@pytest.fixture(scope="module")
def registry_fixture(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> FolderRegistry:
    """Versions that read other neurons to another depth, one on another backbone, and two that give lists."""
    folder = tmp_path_factory.mktemp("shelf")
    elsewhere = tiny.bert(tmp_path_factory.mktemp("elsewhere"), seed=1)
    quick = SearchSettings(etas=(0.9,), max_share=1, strengths=(1,), l1=(), head="linear")
    probe = ProbeSettings(penalties=3, max_extra=0)
    made: dict[str, tuple[Path, list[str], list[str], Callable[[Row], Any], int]] = {
        SHALLOW: (backbone_folder, ["ffn.01"], ["mean"], lambda row: row["label"], 2),
        DEEP: (backbone_folder, ["ffn.01", "resid.03"], ["mean", "max"], lambda row: row["label"], 3),
        ELSEWHERE: (elsewhere, ["resid.02"], ["mean"], lambda row: row["label"], 3),
        LISTS: (backbone_folder, ["ffn.01"], ["mean"], several, 3),
        OTHER_LISTS: (backbone_folder, ["resid.03"], ["max"], several, 3),
    }
    for number, (backbone, sites, poolings, label, classes) in made.items():
        rows = tiny.documents(150, CLASSES[:classes])
        exact = BackboneSettings(model=str(backbone), dtype="float32", device="cpu")  # type: ignore[call-arg]
        spin = SpinClassifier(exact, sites=sites, poolings=poolings, probe=probe, search=quick)
        spin.fit([row["text"] for row in rows], [label(row) for row in rows]).save(folder / number)
    return FolderRegistry(folder)


def several(row: Row) -> list[str]:
    """The class of a document as a list, and whether it speaks of the crew."""
    return [row["label"]] * (row["label"] != "plain") + ["crew"] * ("crew" in row["text"])


@pytest.fixture
def place(
    tmp_path: Path, registry_fixture: FolderRegistry, backbone_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Place:
    monkeypatch.setattr(classify, "map_shards", lambda *args, **given: map_shards(*args, **{**given, "here": True}))
    return Whole(tmp_path, registry_fixture, backbone_folder)


class Whole(Place):
    """Nights of which every document runs to the last block, unless they are told that some leave."""

    def night(self, *args: Any, set: tuple[str, ...] = (), **given: Any) -> RunManifest:
        return super().night(*args, set=("classify.cascade=false", *set), **given)


ROWS = tiny.documents(150, CLASSES, seed=3)
ODD = [{"id": "x", "text": None}, {"id": "y", "text": " "}, dict(ROWS[3])]


def digests(manifest: RunManifest) -> dict[str, str]:
    """Of every file of every shard but what only a shadow leaves."""
    files = {key: file for shard in manifest.shards for key, file in shard.files.items()}
    return {key: file.sha256 for key, file in files.items() if "disagreements" not in key}


def differing(place: Place, out: str = "out") -> list[Row]:
    folder = place.folder / out / "disagreements" / f"date={DATE}"
    return ds.dataset(folder).to_table().to_pylist() if folder.exists() else []  # type: ignore[no-any-return]


@pytest.mark.parametrize(("model", "shadow"), PAIRS)
@pytest.mark.parametrize("documents", [16, 1000])
def test_the_night_is_the_same_with_a_shadow(place: Place, model: str, shadow: str, documents: int) -> None:
    """Bit for bit: predictions, dead letters and what drift is measured on."""
    place.write("a.jsonl", [*ROWS[:77], *ODD, *ROWS[77:]])
    place.promote(model)
    alone = place.night("alone", documents)
    with_shadow = place.night("beside", documents, shadow=f"models:/tiny/{shadow}")
    assert len(alone.shards) == len(with_shadow.shards)
    assert digests(with_shadow) == digests(alone)
    assert with_shadow.counts == alone.counts
    for kind in ("predictions", "dead_letters"):
        files = [sorted((place.folder / out / kind).rglob("*.parquet")) for out in ("alone", "beside")]
        assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    assert with_shadow.shadow.counts.compared == 150


def test_a_compiled_night_is_the_same_with_a_shadow(place: Place) -> None:
    """OpenVINO rounds what it computes by what else is read of it."""
    place.write("a.jsonl", ROWS)
    place.promote(SHALLOW)
    compiled = ("backbone.engine=openvino", "backbone.dtype=bfloat16")
    alone = place.night("alone", set=compiled)
    assert digests(place.night("beside", set=compiled, shadow=f"models:/tiny/{DEEP}")) == digests(alone)


@pytest.mark.parametrize(("model", "shadow"), [(SHALLOW, DEEP), (DEEP, SHALLOW)])
def test_who_leaves_the_model_early_is_compared_too(place: Place, model: str, shadow: str) -> None:
    """Each of the two has exits of its own; the night is that without a shadow, and both say what they say alone."""
    place.write("a.jsonl", ROWS)
    place.promote(model)
    early = ("classify.cascade=true",)
    alone = place.night("alone", set=early)
    with_shadow = place.night("beside", set=early, shadow=f"models:/tiny/{shadow}")
    assert digests(with_shadow) == digests(alone)
    texts = [row["text"] for row in ROWS]
    mine, theirs = (
        SpinClassifier.load(place.registry_fixture.folder / number, early=True) for number in (model, shadow)
    )
    assert mine.exits_early or theirs.exits_early
    labels = zip(mine.predict(texts), theirs.predict(texts), strict=True)
    odd = [(row["id"], a, b) for row, (a, b) in zip(ROWS, labels, strict=True) if a != b]
    assert [(row["id"], row["label"], row["shadow_label"]) for row in differing(place, "beside")] == odd


@pytest.mark.parametrize("abstain", [0, 0.3])
@pytest.mark.parametrize(("model", "shadow"), PAIRS)
def test_the_shadow_says_what_it_says_alone(place: Place, model: str, shadow: str, abstain: float) -> None:
    """Counts and rows against the two classifiers by themselves and a plain loop."""
    place.write("a.jsonl", [*ROWS, *ODD])
    place.promote(model)
    manifest = place.night(shadow=f"models:/tiny/{shadow}", set=(f"decision.abstain={abstain}",))
    texts = [row["text"] for row in ROWS]
    mine, theirs = (SpinClassifier.load(place.registry_fixture.folder / number) for number in (model, shadow))
    decision = mine.decision.model_copy(update={"abstain": abstain})
    mine.decision = theirs.decision = decision
    labels = list(zip(mine.predict(texts), theirs.predict(texts), strict=True))
    odd = [(row["id"], a, b) for row, (a, b) in zip(ROWS, labels, strict=True) if a != b]
    assert 0 < len(odd) < 150
    assert [(row["id"], row["label"], row["shadow_label"]) for row in differing(place)] == odd
    assert {(row["model_version"], row["shadow_version"]) for row in differing(place)} == {(model, shadow)}
    at = [n for n, (a, b) in enumerate(labels) if a != b]
    for column, spin, of in (("score", mine, 0), ("shadow_score", theirs, 1)):
        shares = spin.predict_proba(texts)
        expected = [
            shares[n].max() if not isinstance(labels[n][of], str) else shares[n][spin.classes.index(labels[n][of])]
            for n in at
        ]
        np.testing.assert_allclose([row[column] for row in differing(place)], expected, atol=1e-4)
    agreement = manifest.shadow
    assert (agreement.version, agreement.counts.compared, agreement.counts.failed) == (shadow, 150, 0)
    assert (agreement.counts.agreed, agreement.agreement) == (150 - len(odd), round(1 - len(odd) / 150, 4))
    cells: Counter[tuple[str, str]] = Counter()
    for a, b in labels:
        if model != LISTS:
            cells[a or "", b or ""] += 1
            continue
        for name in ("good", "bad", "crew"):
            given = name in (a or []), name in (b or [])
            if any(given):
                cells[name * given[0], name * given[1]] += 1
    assert {(a, b): n for a, row in agreement.counts.confusion.items() for b, n in row.items()} == cells
    if abstain:
        assert None in [label for pair in labels for label in pair]


def test_the_classes_on_which_they_differ_most_come_first() -> None:
    """What is said of each class, and what is said instead."""
    model, shadow = ["a", "a", "a", "b", None, "b"], ["a", "b", "b", "b", "a", None]
    shards = [count_agreement(model[rows], shadow[rows], False, failed=1) for rows in (slice(2), slice(2, None))]
    total = total_agreement("2", False, shards)
    assert (total.counts.compared, total.counts.agreed, total.counts.failed, total.agreement) == (6, 2, 2, 0.3333)
    assert [astuple(row) for row in total.by_class()] == [("a", 3, 2, 1), ("b", 2, 3, 1), ("", 1, 1, 0)]
    assert [astuple(pair) for pair in total.disagreements()] == [("a", "b", 2), ("", "a", 1), ("b", "", 1)]
    lists = count_agreement([["a", "b"], ["a"], [], None], [["a"], ["b"], [], []], True)
    assert (lists.compared, lists.agreed) == (4, 1)
    assert lists.confusion == {"": {"b": 1}, "a": {"": 1, "a": 1}, "b": {"": 1}}
    by_class = total_agreement("2", True, [lists]).by_class()
    assert [astuple(row) for row in by_class] == [("b", 1, 1, 0), ("a", 2, 1, 1)]


@pytest.mark.parametrize(("first", "second"), [(SHALLOW, DEEP), (DEEP, SHALLOW), (ELSEWHERE, DEEP)])
def test_a_pair_reads_what_each_reads(registry_fixture: FolderRegistry, first: str, second: str) -> None:
    """The same numbers in the same layout, on which the last bits of a product depend."""
    texts = [row["text"] for row in ROWS]
    pair = SharedPass(*(SpinClassifier.load(registry_fixture.folder / number) for number in (first, second)))
    assert pair.one_pass == (first != ELSEWHERE)
    for number, read in zip((first, second), pair.features(texts), strict=True):
        alone = SpinClassifier.load(registry_fixture.folder / number).features(texts)
        assert list(read.columns) == list(alone.columns)
        for column, values in alone.columns.items():
            assert np.array_equal(read.columns[column], values)
            assert read.columns[column].flags.c_contiguous
        assert (read.n_tokens.tolist(), read.truncated) == (alone.n_tokens.tolist(), alone.truncated)


def test_one_pass_serves_both(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the same backbone, loaded once and cut at the deeper depth; on another each makes its own."""
    calls: Counter[str] = Counter()
    real, load = BertModel.forward, BertModel.from_pretrained.__func__  # type: ignore[attr-defined]
    kept = []

    def forward(model: Any, *args: Any, **given: Any) -> Any:
        calls["forward"] += 1
        return real(model, *args, **given)

    def loaded(kind: Any, *args: Any, **given: Any) -> Any:
        calls["load"] += 1
        answer = load(kind, *args, **given)
        kept.append(answer[0])
        return answer

    monkeypatch.setattr(BertModel, "forward", forward)
    monkeypatch.setattr(BertModel, "from_pretrained", classmethod(loaded))
    place.write("a.jsonl", ROWS)

    def made(out: str, **given: Any) -> tuple[int, int]:
        calls.clear()
        kept.clear()
        place.night(out, **given)
        return calls["load"], calls["forward"]

    alone = made("alone")
    assert alone[0] == 1
    assert alone[1] > 4
    assert made("beside", shadow=f"models:/tiny/{DEEP}") == alone
    assert [isinstance(block, torch.nn.Identity) for block in kept[0].encoder.layer] == [False] * 3
    assert made("elsewhere", shadow=f"models:/tiny/{ELSEWHERE}") == (2, 2 * alone[1])
    assert [sum(isinstance(b, torch.nn.Identity) for b in model.encoder.layer) for model in kept] == [2, 1]


def test_a_resumed_night_counts_every_document_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after two shards; what they had counted stands, by an alias that is resolved again."""
    place.write("a.jsonl", ROWS)
    (place.registry_fixture.folder / "challenger").write_text(DEEP)
    whole = place.night("whole", shadow="challenger")
    real = ShardLog.commit

    class Killed(BaseException):
        pass

    def commit(shard_log: ShardLog, name: str, *args: Any, **given: Any) -> Any:
        if shard_log.store.uri.endswith("-001") and name == "000002":
            raise Killed
        return real(shard_log, name, *args, **given)

    with monkeypatch.context() as patch:
        patch.setattr(ShardLog, "commit", commit)
        with pytest.raises(Killed):
            place.night(shadow="challenger")
    assert place.published() == []
    resumed = place.night(shadow="challenger")
    assert resumed.shadow == whole.shadow
    assert differing(place) == differing(place, "whole")
    assert [key for key in Store(str(place.folder / "out")).list() if "/shadow/" in key] == []


def test_a_file_that_is_left_out_is_not_compared(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its counts nor its rows, where it is found out after one of its shards."""
    place.write("a.jsonl", ROWS[:80])
    place.write("b.jsonl", ROWS[80:])

    def killed(store: Store) -> None:
        store.write_json("attempts/000001.json", {"begun": 3, "ended": 0, "note": {}})

    during("classify", killed, monkeypatch)
    manifest = place.night(shadow=f"models:/tiny/{DEEP}", max_bad_files=0.5)
    assert len(manifest.quarantined) == 1
    assert manifest.shadow.counts.compared == manifest.counts.rows == 70
    assert {row["id"] for row in differing(place)} <= {row["id"] for row in ROWS[80:]}


def test_another_shadow_is_another_night(place: Place) -> None:
    """None, one and another are refused in turn; started over without, nothing of the shadow stays."""
    place.write("a.jsonl", ROWS)
    place.night(shadow=f"models:/tiny/{DEEP}")
    assert differing(place)
    for shadow, said in ((f"models:/tiny/{ELSEWHERE}", '"3", was "2"'), (None, 'absent, was "2"')):
        with pytest.raises(UserError, match=rf"shadow\.version is {said}.*--restart"):
            place.night(shadow=shadow)
    place.night(restart=True)
    assert [key for key in place.published() if "disagreements" in key] == []
    with pytest.raises(UserError, match=r'shadow\.version is "2", was absent.*--restart'):
        place.night(shadow=f"models:/tiny/{DEEP}")


def test_a_model_is_no_shadow_of_itself(place: Place) -> None:
    """A job that names the challenger every night goes on when that was promoted: it has no shadow then."""
    place.write("a.jsonl", ROWS)
    for own in ("champion", f"models:/tiny/{SHALLOW}"):
        assert place.night(shadow=own).shadow is None


@pytest.mark.parametrize(
    ("given", "set", "said"),
    [
        ("models:/tiny/9", (), "models:/tiny/9 does not exist"),
        (f"models:/tiny/{LISTS}", (), "version 4 cannot .* it gives a document a list of classes, the model one class"),
        ("models:/tiny/gone", (), "version gone cannot .* no directory .*nowhere"),
        ("models:/tiny/moved", (), "version moved cannot .* has digest [0-9a-f]{12}, expected [0-9a-f]{12}"),
        ("models:/tiny/half", (), "version half cannot .* not a classifier that can be read"),
        (f"models:/tiny/{ELSEWHERE}", ("decision.thresholds={good: 0.9, bad: 0.5}",), "they sum to 1.4"),
    ],
)
def test_a_shadow_that_cannot_be_is_refused_before_any_work(
    place: Place, backbone_folder: Path, given: str, set: tuple[str, ...], said: str
) -> None:
    place.write("a.jsonl", ROWS)
    for name, backbone in (("gone", "/nowhere"), ("moved", str(backbone_folder)), ("half", None)):
        folder = place.registry_fixture.folder / name
        shutil.copytree(place.registry_fixture.folder / ELSEWHERE, folder, dirs_exist_ok=True)
        config = json.loads((folder / "config.json").read_text())
        config["backbone"]["model"] = backbone
        (folder / "config.json").write_text(json.dumps(config) if backbone else "half")
    with pytest.raises(UserError, match=said):
        place.night(shadow=given, set=set)
    assert [key for key in Store(str(place.folder / "out")).list() if not key.startswith("_lease/")] == []


class OddStep(ClassifyStep):
    """The third block cannot take what the tokenizer does not know: only who reads so deep sees that."""

    always = False
    raised = 0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        seen: dict[str, Any] = {}
        backbone = self.spin.backbone

        def keep(_module: Any, _args: Any, given: dict[str, Any]) -> None:
            seen["ids"] = given["input_ids"]

        def refuse(*_: Any) -> None:
            if self.always or (seen["ids"] == backbone.tokenizer.unk_token_id).any():
                type(self).raised += 1
                raise RuntimeError("cannot be computed")

        backbone.model.register_forward_pre_hook(keep, with_kwargs=True)
        backbone.blocks[2].register_forward_pre_hook(refuse)


def test_a_document_on_which_only_the_shadow_raises_is_no_dead_letter(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is predicted as ever and counted; the others of its shard are compared."""
    monkeypatch.setattr(classify, "ClassifyStep", OddStep)
    rows = [*ROWS[:17], {"id": "odd", "text": "the zebra was late"}, *ROWS[17:]]
    place.write("a.jsonl", rows)
    alone = place.night("alone")
    manifest = place.night(shadow=f"models:/tiny/{DEEP}")
    assert digests(manifest) == digests(alone)
    assert (manifest.counts.dead, manifest.counts.predicted) == (0, 151)
    assert (manifest.shadow.counts.compared, manifest.shadow.counts.failed) == (150, 1)
    found = [row["id"] for row in differing(place)]
    assert found == sorted(found)
    place.write("a.jsonl", ROWS)
    assert (
        place.night("sound", shadow=f"models:/tiny/{DEEP}").shadow.counts.confusion == manifest.shadow.counts.confusion
    )
    place.promote(DEEP)
    place.write("a.jsonl", rows)
    manifest = place.night("deep", shadow=f"models:/tiny/{SHALLOW}")
    assert manifest.counts.reasons == {"poison": 1}
    assert (manifest.shadow.counts.compared, manifest.shadow.counts.failed) == (150, 0)


def test_a_shadow_that_can_do_nothing_does_not_hold_up_the_night(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried a number of times a shard, not once for every document."""
    monkeypatch.setattr(classify, "ClassifyStep", OddStep)
    monkeypatch.setattr(OddStep, "always", True)
    monkeypatch.setattr(OddStep, "raised", 0)
    place.write("a.jsonl", ROWS)
    alone = place.night("alone", 1000)
    manifest = place.night(documents=1000, shadow=f"models:/tiny/{DEEP}")
    assert digests(manifest) == digests(alone)
    assert (manifest.shadow.counts.compared, manifest.shadow.counts.failed) == (0, 150)
    assert OddStep.raised == 1 + 100


def test_a_document_that_the_model_cannot_compute_is_not_compared(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a dead letter, as without a shadow."""
    monkeypatch.setattr(classify, "ClassifyStep", chaos.ChaosStep)
    place.write("a.jsonl", [*ROWS[:17], {"id": "poison", "text": chaos.RAISE}, *ROWS[17:]])
    alone = place.night("alone")
    manifest = place.night(shadow=f"models:/tiny/{DEEP}")
    assert digests(manifest) == digests(alone)
    assert manifest.counts.reasons == {"poison": 1}
    assert (manifest.shadow.counts.compared, manifest.shadow.counts.failed) == (150, 0)
    found = [row["id"] for row in differing(place)]
    assert found == sorted(found)


@pytest.mark.parametrize("deaths", [MAX_CRASHES - 1, MAX_CRASHES])
def test_where_processes_die_the_shadow_is_left_out(place: Place, monkeypatch: pytest.MonkeyPatch, deaths: int) -> None:
    """Of that shard, once it is no longer laid to the machine; its documents are predicted."""
    place.write("a.jsonl", ROWS)

    def killed(store: Store) -> None:
        store.write_json("attempts/000000.json", {"begun": deaths, "ended": 0, "note": {}})

    during("classify", killed, monkeypatch)
    manifest = place.night(shadow=f"models:/tiny/{DEEP}")
    failed = manifest.shards[0].counts.rows if deaths == MAX_CRASHES else 0
    assert manifest.counts.predicted == 150
    assert (manifest.shadow.counts.compared, manifest.shadow.counts.failed) == (150 - failed, failed)


def test_a_night_of_nothing_is_compared(place: Place) -> None:
    """No document, no share."""
    place.write("a.jsonl", [{"id": "x", "text": None}])
    shadow = place.night(shadow=f"models:/tiny/{DEEP}", max_dead_fraction=1).shadow
    assert (
        shadow.to_json()
        == json.loads((place.folder / "out" / "report.json").read_text())["shadow"]
        == {
            "version": DEEP,
            "multilabel": False,
            "compared": 0,
            "failed": 0,
            "agreed": 0,
            "agreement": None,
            "confusion": {},
        }
    )
    assert "It agrees on none of 0 documents." in " ".join((place.folder / "out" / "report.html").read_text().split())


def test_without_a_shadow_there_is_nothing_of_it(place: Place) -> None:
    """In no file, and in no fact that decides whether a night is the same."""
    place.write("a.jsonl", ROWS)
    place.night()
    out = Store(str(place.folder / "out"))
    assert [key for key in out.list() if "shadow" in key or "disagreements" in key] == []
    for key in out.list():
        data = (out.read(key) or b"").replace(str(place.folder).encode(), b"")  # which has the name of this test
        assert key.startswith("_lease/") or b"shadow" not in data.lower(), key
    facts = out.read_json(f"_runs/{DATE}-001/plan.json")["facts"]
    assert set(facts) == {
        *("format", "model", "choose", "decision", "backbone", "data", "shard_documents", "cascade"),
        *("dead_letter_text", "files"),
    }
    assert facts["format"] == 5


@pytest.mark.usefixtures("ray_session")
def test_workers_compare_as_one_process_does(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write("a.jsonl", ROWS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a worker's: sums in another order differ in their last bits
    try:
        here = place.night("here", shadow=f"models:/tiny/{DEEP}")
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(classify, "map_shards", map_shards)
    there = place.night("there", shadow=f"models:/tiny/{DEEP}", set=("ray.workers=2",))
    assert (there.shadow, digests(there)) == (here.shadow, digests(here))
    assert differing(place, "there") == differing(place, "here")


def test_the_command_and_the_page_tell(
    browser: Any, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`spin classify --shadow` says how far both agree and what is said instead, the page by class."""
    place.write("a.jsonl", ROWS)
    (place.registry_fixture.folder / "challenger").write_text(DEEP)
    place.night("before")
    monkeypatch.setattr(cli, "open_registry", lambda _: place.registry_fixture)
    words = ["spin", "classify", str(place.folder / "settings.yaml"), "--input", str(place.folder / "data")]
    words += ["--output", str(place.folder / "out"), "--date", DATE, "--shadow", "challenger"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as left:
        cli.main()
    said = capsys.readouterr()
    assert left.value.code == 0, said.err
    record = json.loads((place.folder / "out" / "report.json").read_text())["shadow"]
    shadow, share = ShadowAgreement.from_json(record), f"{100 * record['agreement']:.1f}"
    assert shadow.to_json() == record
    [first, *_] = pairs = [astuple(pair) for pair in shadow.disagreements()]
    expected = f"shadow version 2 agrees on {share} % of 150 documents: {first[0]} → {first[1]} {first[2]}"
    assert expected in said.out
    with open_page(browser, tmp_path, (place.folder / "out" / "report.html").read_text()) as window:
        section = window.locator("main section section", has_text="Version 2 scored the same documents")
        assert f"It agrees on {share}\u202f% of 150 documents" in section.inner_text()
        tables = [
            [row.split("\t") for row in table.locator("tbody tr").all_inner_texts()]
            for table in section.locator("table").all()
        ]
        assert tables[0] == [[*map(str, astuple(row))] for row in shadow.by_class()]
        assert tables[1] == [[*map(str, pair)] for pair in pairs]
