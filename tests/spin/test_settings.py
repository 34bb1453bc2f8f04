"""What people type: settings, overrides and sites; each mistake is one line that says what was expected."""

from __future__ import annotations

import string
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from spin.errors import UserError
from spin.labels.splits import SPLITS, assign_split, rows_in_split
from spin.settings import POOLINGS, SearchSettings, Settings, Stage, load_settings, parse_settings
from spin.sites import FeatureColumn, Site, choose_sites

sites = st.one_of(
    st.builds(Site, st.integers(0, 9999), st.sampled_from(["resid", "final"])),
    st.builds(Site, st.integers(1, 9999), st.just("ffn")),
)
TREE = {"backbone": {"model": "some/model"}, "data": {"train": "train.csv"}, "store": "runs"}


def written(folder: Path, text: str) -> Path:
    path = folder / "spin.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def mistake(tree: dict[str, Any]) -> str:
    """The one line that a mapping earns."""
    with pytest.raises(UserError) as raised:
        parse_settings(tree, "spin.yaml")
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("spin.yaml: ")
    return str(raised.value)


def test_a_file_becomes_settings(tmp_path: Path, settings_tree: dict[str, Any]) -> None:
    """Given values are kept, missing ones have their defaults, and the result cannot be changed."""
    read = load_settings(written(tmp_path, yaml.safe_dump(settings_tree)))
    assert read.backbone.dtype == "float32"
    assert read.ray.shard_documents == 60
    assert read.probe.penalties == 10
    assert read.poolings is None
    with pytest.raises(ValueError, match="frozen"):
        read.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nonsense": 1}, "unknown setting 'nonsense'"),
        ({"probe": {"penalty": 3}}, "unknown setting 'probe.penalty'"),
        ({"backbone": {}}, "'backbone.model' is missing"),
        ({"backbone": "bert"}, "'backbone' is 'bert'"),
        ({"seed": "many"}, "'seed' is 'many': Input should be a valid integer"),
        ({"probe": {"penalties": 1}}, "'probe.penalties' is 1: Input should be greater than or equal to 2"),
        ({"sites": "ffn"}, "'sites' is 'ffn': Input should be a valid tuple"),
        (
            {"backbone": {"model": "m", "dtype": "int4"}},
            "'backbone.dtype' is 'int4': Input should be 'auto', 'float32'",
        ),
        (
            {"data": {"train": "t", "valid_fraction": 0.7}},
            "'data.valid_fraction' is 0.7: Input should be less than 0.5",
        ),
        ({"metric": "auc"}, "'metric' is 'auc': Input should be 'accuracy', 'balanced_accuracy' or 'macro_f1'"),
        ({"poolings": ["mode"]}, "'poolings.0' is 'mode': Input should be 'first', 'last', 'mean' or 'max'"),
        ({"poolings": []}, "'poolings' is []: expected at least one"),
        ({"search": {"etas": [0.5, 1.5]}}, "'search.etas.1' is 1.5: Input should be less than or equal to 1"),
        ({"search": {"etas": []}}, "'search.etas' is []: expected at least one"),
        ({"search": {"strengths": []}}, "'search.strengths' is []: expected at least one"),
        ({"search": {"strengths": [0.1, 0]}}, "'search.strengths.1' is 0: Input should be greater than 0"),
        ({"search": {"strengths": [float("inf")]}}, "'search.strengths.0' is inf: Input should be a finite number"),
        ({"search": {"etas": [float("nan")]}}, "'search.etas.0' is nan: Input should be less than or equal to 1"),
        ({"search": {"l1": [1]}}, "'search.l1.0' is 1: Input should be less than 1"),
        ({"cascade": {"depths": [0.5, 1]}}, "'cascade.depths.1' is 1: Input should be less than 1"),
        ({"decision": {"thresholds": {"good": 1.5}}}, "'decision.thresholds.good' is 1.5: Input should be less than 1"),
        ({"backbone": None}, "'backbone.model' is missing"),
        ({"mlflow": {"model": "a/b"}}, "'mlflow.model' is 'a/b': String should match"),
        ({"store": None}, "'store' is None: Input should be a valid string"),
    ],
)
def test_a_mistake_names_its_key_and_what_was_expected(change: dict[str, Any], said: str) -> None:
    """One mistake, one line, named once."""
    line = mistake(TREE | change)
    assert said in line
    assert "; '" not in line


def test_an_empty_section_holds_defaults(tmp_path: Path) -> None:
    """A section of which every line is a comment is null in YAML; --set can still reach into it."""
    plain = parse_settings(TREE)
    assert parse_settings({**TREE, "probe": None, "ray": {"classify": None}}) == plain
    path = written(tmp_path, yaml.safe_dump({**TREE, "probe": None, "ray": {"classify": None}}))
    read = load_settings(path, ["probe.penalties=5", "ray.classify.workers=2"])
    assert (read.probe.penalties, read.ray.for_stage("classify").workers) == (5, 2)


URIS = {
    "mlflow.tracking_uri": lambda uri: {"mlflow": {"tracking_uri": uri}},
    "store": lambda uri: {"store": uri},
    "data.train": lambda uri: {"data": {"train": uri}},
}


@pytest.mark.parametrize("key", URIS)
@pytest.mark.parametrize(
    "uri",
    [
        "https://user:hunter2@host",
        "https://:hunter2@host:5000/path",
        "postgresql+psycopg2://user:hunter2@h:5432/db?a=b",
        "s3://user:hun/hunter2@bucket/prefix",
        "s3://user:hunter2@hunter2@bucket",
        "postgresql://h/db?user=u&password=hunter2",
        "mysql://h/db?passwd=hunter2",
    ],
)
def test_a_password_is_refused_and_not_shown(key: str, uri: str, tmp_path: Path) -> None:
    """In any place, from the file or the command line, also where something else is wrong with it."""
    said = mistake(TREE | URIS[key](uri))
    assert f"'{key}' is '***': a password stands in it; expected none: it comes from the environment" in said
    assert "hunter2" not in said
    section = key.partition(".")[0]
    assert "hunter2" not in mistake(TREE | {section: [uri]})
    path = written(tmp_path, yaml.safe_dump(TREE))
    for override in (f"{key}={uri}", f"{key}=[{uri}", f"store.x={uri}", *([f"{key}:{uri}"] if "=" not in uri else [])):
        with pytest.raises(UserError) as raised:
            load_settings(path, [override])
        assert "hunter2" not in str(raised.value)
    with pytest.raises(UserError, match=r"cannot be read as YAML: .*, in line 2") as raised:
        load_settings(written(tmp_path, f"a: b\nstore: [{uri} : : b\n"))
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("key", URIS)
@pytest.mark.parametrize(
    "uri",
    [
        "https://user@host:5000",
        "postgresql://user@host:5432/db?sslmode=require",
        "http://[::1]:5000/a",
        "sqlite:////home/a:b@c/mlflow.db",
        "s3://bucket/a:b@c/*.parquet",
        "data/passwords=1:2@3.csv",
    ],
)
def test_a_place_without_a_password_is_taken(key: str, uri: str) -> None:
    """The name of a user, ports, and odd names of files."""
    assert parse_settings(TREE | URIS[key](uri))


def test_every_mistake_is_named_at_once() -> None:
    """All keys that are wrong, in the one line."""
    said = mistake({"backbone": {"model": 3}, "data": {"train": "t", "txt": "x"}})
    for part in ("'backbone.model' is 3", "unknown setting 'data.txt'", "'store' is missing"):
        assert part in said


@pytest.mark.parametrize(
    ("override", "at", "value"),
    [
        ("seed=7", "seed", 7),
        ("probe.penalties=4", "probe.penalties", 4),
        ("sites=[ffn.01, resid]", "sites", ("ffn.01", "resid")),
        ("mlflow.tracking_uri=http://host:5000?a=b", "mlflow.tracking_uri", "http://host:5000?a=b"),
        ("poolings=null", "poolings", None),
        ("search.etas=[1]", "search.etas", (1.0,)),
    ],
)
def test_an_override_replaces_one_value(tmp_path: Path, override: str, at: str, value: object) -> None:
    """a.b=value, read as YAML, in a section that the file may lack; only the first = divides."""
    found: Any = load_settings(written(tmp_path, yaml.safe_dump(TREE)), [override])
    for key in at.split("."):
        found = getattr(found, key)
    assert found == value


def test_the_last_override_wins(tmp_path: Path) -> None:
    """As on any command line."""
    assert load_settings(written(tmp_path, yaml.safe_dump(TREE)), ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "--set seed: expected a.b=value"),
        ("=3", "--set =3: expected a.b=value"),
        ("store.kind=s3", "--set store.kind=s3: 'store' is a value, it has no 'kind'"),
        ("seed=[1", "--set seed=[1: '[1' is not YAML"),
        ("store=2026-13-01", "--set store=2026-13-01: '2026-13-01' is not YAML"),
        ("seed=", "'seed' is None: Input should be a valid integer"),
        ("sed=3", "unknown setting 'sed'"),
        ("probe.sed=3", "unknown setting 'probe.sed'"),
        ("probe=3", "'probe' is 3"),
    ],
)
def test_a_bad_override_is_named(tmp_path: Path, override: str, said: str) -> None:
    """What is wrong with it, in one line."""
    with pytest.raises(UserError) as raised:
        load_settings(written(tmp_path, yaml.safe_dump(TREE)), [override])
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example("seed=!!int x")
@given(st.text(string.printable.replace("\n", ""), max_size=20) | st.builds("seed={}".format, st.text(max_size=9)))
def test_any_override_is_taken_or_refused(tmp_path: Path, override: str) -> None:
    """Nothing that can be typed leads to anything but settings or a UserError."""
    path = tmp_path / "spin.yaml"
    if not path.exists():
        written(tmp_path, yaml.safe_dump(TREE))
    with suppress(UserError):
        assert isinstance(load_settings(path, [override]), Settings)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1\nb: 2", "cannot be read as YAML"),
        ("store: 2026-13-01", "cannot be read as YAML"),
        ("- a\n- b", "holds list, expected a mapping of settings"),
        ("", "holds NoneType, expected a mapping"),
    ],
)
def test_a_file_that_is_no_settings(tmp_path: Path, text: str, said: str) -> None:
    """The file is named, and what it holds; in one line, though a YAML error has many."""
    path = written(tmp_path, text)
    with pytest.raises(UserError) as raised:
        load_settings(path)
    assert str(raised.value).startswith(str(path))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Missing, a folder, not text."""
    with pytest.raises(UserError, match=r"no settings file at .*missing\.yaml; `spin init .*missing\.yaml` writes one"):
        load_settings(tmp_path / "missing.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load_settings(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"store: caf\xe9")
    with pytest.raises(UserError, match="cannot be read"):
        load_settings(tmp_path / "latin.yaml")


def test_defaults_satisfy_their_own_rules() -> None:
    """Defaults are not validated by pydantic; these pass when they are given."""
    assert SearchSettings(**SearchSettings().model_dump()) == SearchSettings()
    full = parse_settings(TREE)
    assert parse_settings(full.model_dump()) == full


@given(sites, st.sampled_from(POOLINGS))
def test_sites_and_columns_round_trip(site: Site, pooling: str) -> None:
    """Text forms are read back as what they were written from."""
    assert Site.parse(str(site)) == site
    assert FeatureColumn.parse(str(FeatureColumn(site, pooling))) == FeatureColumn(site, pooling)


@given(
    st.text(max_size=30) | st.from_regex(r"(resid|ffn|final|Resid)?[.,]?\d{0,6}(\.(mean|max|mode))?", fullmatch=True)
)
@example("resid." + "9" * 5000)
@example("resid.٠١")
@example("ffn.00")
@example("resid.001")
@example("ffn.01\n")
def test_garbage_is_no_site(text: str) -> None:
    """Whatever is parsed prints as it was typed; all else is a UserError, and nothing is any other error."""
    for kind in (Site, FeatureColumn):
        with suppress(UserError):
            assert str(kind.parse(text)) == text


def test_sites_sort_in_the_order_of_the_forward_pass() -> None:
    """By layer; within a block the FFN comes before the stream that it adds to."""
    texts = ["resid.00", "ffn.01", "resid.01", "ffn.02", "resid.02", "ffn.10", "resid.10"]
    assert [str(s) for s in sorted(Site.parse(t) for t in reversed(texts))] == texts


HAVE = [Site.parse(t) for t in ("resid.00", "ffn.01", "resid.01", "ffn.02", "resid.02")]


def test_choose_sites() -> None:
    """A kind stands for all its layers; a repetition counts once; the order is the model's."""
    assert choose_sites(["resid", "ffn"], HAVE) == HAVE
    assert list(map(str, choose_sites(["resid.02", "ffn", "ffn.01"], HAVE))) == ["ffn.01", "ffn.02", "resid.02"]


@pytest.mark.parametrize(
    ("wanted", "have", "said"),
    [
        (["ffn.03"], HAVE, "the backbone has no 'ffn.03'; it has resid.00 to resid.02, ffn.01 to ffn.02"),
        (["resid", "final.02"], HAVE, "the backbone has no 'final.02'"),
        (["ffn"], [s for s in HAVE if s.kind == "resid"], "no 'ffn'; it has resid.00 to resid.02"),
        (["attention"], HAVE, "'attention' is not a site; expected resid.NN"),
        (["ffn.1"], HAVE, "'ffn.1' is not a site"),
        (["ffn.00"], HAVE, "'ffn.00' is not a site"),
        ([], HAVE, "sites: the list is empty; expected resid, ffn"),
    ],
)
def test_choose_sites_says_what_there_is(wanted: list[str], have: list[Site], said: str) -> None:
    """A site that the backbone lacks, a kind that it lacks, no site at all."""
    with pytest.raises(UserError) as raised:
        choose_sites(wanted, have)
    assert said in str(raised.value)


def test_split_fractions_hold() -> None:
    """Within four standard deviations of what was asked for, with any seed; nothing asked for, nothing given."""
    n = 20000
    for seed, valid, test in [(0, 0.15, 0.15), (1, 0.1, 0.4), (2, 0.3, 0.0)]:
        found = [assign_split(f"doc-{i}", seed, valid, test) for i in range(n)]
        for name, share in zip(SPLITS, (1 - valid - test, valid, test), strict=True):
            assert abs(found.count(name) - share * n) <= 4 * (share * (1 - share) * n) ** 0.5


@given(st.lists(st.text(), unique=True, min_size=1), st.integers(-5, 5), st.data())
def test_more_documents_move_none(ids: list[str], seed: int, data: st.DataObject) -> None:
    """A document's split depends on its id and the seed alone, not on its place or its company."""
    before = {i: assign_split(i, seed, 0.2, 0.2) for i in ids}
    more = data.draw(st.permutations([*ids, *data.draw(st.lists(st.text(), max_size=5))]))
    after = {i: assign_split(i, seed, 0.2, 0.2) for i in more}
    assert {i: after[i] for i in ids} == before


def test_a_larger_test_fraction_keeps_the_tests_documents() -> None:
    """A seed draws another split; a larger test fraction only adds to the test."""
    ids = list(map(str, range(2000)))
    small = {i for i in ids if assign_split(i, 0, 0.2, 0.1) == "test"}
    assert small < {i for i in ids if assign_split(i, 0, 0.2, 0.3) == "test"}
    assert small != {i for i in ids if assign_split(i, 1, 0.2, 0.1) == "test"}
    assert assign_split("\ud800", 0, 0.2, 0.2) in SPLITS  # a lone surrogate, as JSON can hold


def test_the_rows_of_a_split() -> None:
    assert rows_in_split(["train", "valid", "train"], "train").tolist() == [0, 2]
    assert rows_in_split([], "train").shape == (0,)


def test_a_stage_may_have_workers_of_its_own() -> None:
    """What it does not set is as for all stages."""
    given = {"workers": 4, "cpus_per_worker": 2, "probe": {"workers": 1}, "classify": {"gpus_per_worker": 0.5}}
    ray = parse_settings({**TREE, "ray": given}).ray
    assert [(of.workers, of.cpus_per_worker, of.gpus_per_worker) for of in map(ray.for_stage, get_args(Stage))] == [
        (4, 2, 0),
        (1, 2, 0),
        (4, 2, 0),
        (4, 2, 0.5),
    ]


@pytest.mark.parametrize(
    ("ray", "said"),
    [
        ({"workers": 2, "min_workers": 3}, "min_workers of extract is 3, workers 2; expected at least min_workers"),
        ({"min_workers": 3, "train": {"workers": 2}}, "min_workers of train is 3, workers 2"),
        ({"workers": 2, "classify": {"min_workers": 3}}, "min_workers of classify is 3, workers 2"),
        ({"extract": {"worker": 2}}, "unknown setting 'ray.extract.worker'"),
    ],
)
def test_the_least_workers_are_at_most_the_most(ray: dict[str, Any], said: str) -> None:
    assert said in mistake({**TREE, "ray": ray})
