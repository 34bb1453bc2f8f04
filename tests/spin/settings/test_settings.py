"""Settings files, overrides and sites, and the one-line messages about mistakes in them."""

from __future__ import annotations

import string
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from spin.errors import UserError
from spin.labels.splits import SPLITS, assign_split, rows_in_split
from spin.poolings.registry import POOLINGS
from spin.settings import (
    BackboneSettings,
    DataSettings,
    SearchSettings,
    Settings,
    Stage,
    StoreSettings,
    holds_password,
    holds_user_part,
    load_settings,
    mask_credentials,
    parse_settings,
)
from spin.sites import FeatureColumn, Site, choose_sites

sites = st.one_of(
    st.builds(Site, st.integers(0, 9999), st.sampled_from(["resid", "final"])),
    st.builds(Site, st.integers(1, 9999), st.just("ffn")),
)
TREE = {"backbone": {"model": "some/model"}, "data": {"train": "train.csv"}, "store": "runs"}


def write_settings(folder: Path, text: str) -> Path:
    """Write a settings file and return its path."""
    path = folder / "spin.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def error_message(tree: dict[str, Any]) -> str:
    """Return the message about mistakes in settings, which is one line and names the file."""
    with pytest.raises(UserError) as raised:
        parse_settings(tree, "spin.yaml")
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("spin.yaml: ")
    return str(raised.value)


@pytest.mark.parametrize(
    ("line", "expected"),
    [("on", "on"), ("off", "off"), ("'on'", "on"), ("auto", "auto"), ("yes", "on"), ("false", "off")],
)
def test_words_may_be_on_or_off_without_quotes(tmp_path: Path, line: str, expected: str) -> None:
    """YAML reads bare `on` and `off` as true and false."""
    text = f"{yaml.safe_dump(TREE)}search: {{words: {line}}}\n"
    assert load_settings(write_settings(tmp_path, text)).search.words == expected


def test_a_settings_file_is_read_and_completed_with_defaults(tmp_path: Path, settings_tree: dict[str, Any]) -> None:
    """The settings cannot be changed afterwards."""
    loaded = load_settings(write_settings(tmp_path, yaml.safe_dump(settings_tree)))
    assert loaded.backbone.dtype == "float32"
    assert loaded.ray.shard_documents == 60
    assert loaded.probe.penalties == 10
    assert loaded.poolings is None
    with pytest.raises(ValueError, match="frozen"):
        loaded.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nonsense": 1}, "unknown setting 'nonsense'"),
        ({"probe": {"penalty": 3}}, "unknown setting 'probe.penalty' (did you mean 'probe.penalties'?)"),
        ({"max_tokens": 3}, "unknown setting 'max_tokens' (did you mean 'backbone.max_tokens'?)"),
        ({"sed": 3}, "unknown setting 'sed' (did you mean 'seed'?)"),
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
        ({"data": {"train": "t", "delimiter": "tab"}}, "'data.delimiter' is 'tab': String should match"),
        (
            {"data": {"train": "t", "encoding": "utf-16"}},
            "'data.encoding' is 'utf-16': expected an encoding that contains",
        ),
        (
            {"data": {"train": "t", "encoding": "utf-9"}},
            "'data.encoding' is 'utf-9': expected an encoding that contains",
        ),
        ({"metric": "auc"}, "'metric' is 'auc': Input should be 'accuracy', 'balanced_accuracy' or 'macro_f1'"),
        ({"poolings": ["mode"]}, "'poolings.0' is 'mode': expected one of mean, max, first, last"),
        ({"poolings": []}, "'poolings' is []: expected at least one"),
        ({"search": {"head": "mlp"}}, "'search.head' was removed; use search.network, auto or off"),
        ({"search": {"network": "tree"}}, "'search.network' is 'tree': Input should be 'auto' or 'off'"),
        ({"search": {"etas": [0.5, 1.5]}}, "'search.etas.1' is 1.5: Input should be less than or equal to 1"),
        ({"search": {"etas": []}}, "'search.etas' is []: expected at least one"),
        ({"search": {"strengths": []}}, "'search.strengths' is []: expected at least one"),
        ({"search": {"strengths": [0.1, 0]}}, "'search.strengths.1' is 0: Input should be greater than 0"),
        ({"search": {"strengths": [float("inf")]}}, "'search.strengths.0' is inf: Input should be a finite number"),
        ({"search": {"etas": [float("nan")]}}, "'search.etas.0' is nan: Input should be less than or equal to 1"),
        ({"search": {"words": 1}}, "'search.words' is 1"),
        ({"search": {"l1": [0.1]}}, "'search.l1' was removed; a smaller search.max_share or smaller search.etas drop"),
        ({"search": {"rules": ["l1"]}}, "'search.rules' was removed; neurons are ranked by both measures together"),
        ({"cascade": {"depths": [0.5, 1]}}, "'cascade.depths.1' is 1: Input should be less than 1"),
        ({"decision": {"thresholds": {"good": 1.5}}}, "'decision.thresholds.good' is 1.5: Input should be less than 1"),
        ({"backbone": None}, "'backbone.model' is missing"),
        ({"mlflow": {"model": "a/b"}}, "'mlflow.model' is 'a/b': String should match"),
        ({"promote": {"class_floors": {"bad": 80}}}, "'promote.class_floors.bad' is 80: Input should be less than"),
        ({"promote": {"min_score": 80}}, "'promote.min_score' is 80"),
        ({"promote": {"significance": 0}}, "'promote.significance' is 0"),
        ({"promote": {"timeout_seconds": 0}}, "'promote.timeout_seconds' is 0"),
        ({"store": None}, "'store.uri' is missing"),
        ({"store": 3}, "'store' is 3: Input should be a valid dictionary"),
        ({"store": {"retention": 30}}, "'store.uri' is missing"),
        ({"store": {"uri": "s", "retention": 0}}, "'store.retention' is 0: Input should be greater than or equal to 1"),
        ({"store": {"uri": "s", "kind": "s3"}}, "unknown setting 'store.kind'"),
    ],
)
def test_a_mistake_is_reported_with_its_key_and_what_was_expected(change: dict[str, Any], message: str) -> None:
    """Each mistake is reported once."""
    line = error_message(TREE | change)
    assert message in line
    assert "; '" not in line


def test_the_store_is_a_uri_or_a_section(tmp_path: Path) -> None:
    """Also where settings are made in Python, and where an override sets one of its keys."""
    alone, section = parse_settings(TREE), parse_settings({**TREE, "store": {"uri": "runs"}})
    assert alone == section == Settings(**TREE)
    assert alone.store == StoreSettings(uri="runs")
    assert (alone.store.uri, alone.store.retention) == ("runs", None)
    assert parse_settings(alone.model_dump(mode="json", exclude_unset=True)) == alone
    assert Settings.model_validate_json(alone.model_dump_json()) == alone
    kept = StoreSettings(uri="runs", retention=30)
    for store in ("runs", {"uri": "runs", "retention": 7}, {"uri": "runs"}):
        path = write_settings(tmp_path, yaml.safe_dump({**TREE, "store": store}))
        assert load_settings(path, ["store.retention=30"]).store == kept
        assert load_settings(path, ["store=elsewhere"]).store == StoreSettings(uri="elsewhere")
        assert load_settings(path, ["store.uri=elsewhere"]).store.uri == "elsewhere"


def test_an_empty_section_holds_defaults(tmp_path: Path) -> None:
    """A section that contains only comments is null in YAML. `--set` can still set its keys."""
    defaults = parse_settings(TREE)
    assert parse_settings({**TREE, "probe": None, "ray": {"classify": None}}) == defaults
    path = write_settings(tmp_path, yaml.safe_dump({**TREE, "probe": None, "ray": {"classify": None}}))
    loaded = load_settings(path, ["probe.penalties=5", "ray.classify.workers=2"])
    assert (loaded.probe.penalties, loaded.ray.for_stage("classify").workers) == (5, 2)


URIS = {
    "mlflow.tracking_uri": lambda uri: {"mlflow": {"tracking_uri": uri}},
    "store": lambda uri: {"store": uri},
    "store.uri": lambda uri: {"store": {"uri": uri}},
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
def test_a_password_in_a_uri_is_refused_and_not_shown(key: str, uri: str, tmp_path: Path) -> None:
    """No key accepts one, in the file or on the command line, also if the settings have other mistakes."""
    message = error_message(TREE | URIS[key](uri))
    assert f"'{key}' is '***': a password stands in it; expected none: it comes from the environment" in message
    assert "hunter2" not in message
    section = key.partition(".")[0]
    assert "hunter2" not in error_message(TREE | {section: [uri]})
    path = write_settings(tmp_path, yaml.safe_dump(TREE))
    for override in (f"{key}={uri}", f"{key}=[{uri}", f"store.x={uri}", *([f"{key}:{uri}"] if "=" not in uri else [])):
        with pytest.raises(UserError) as raised:
            load_settings(path, [override])
        assert "hunter2" not in str(raised.value)
    with pytest.raises(UserError, match=r"cannot be read as YAML: .*, in line 2") as raised:
        load_settings(write_settings(tmp_path, f"a: b\nstore: [{uri} : : b\n"))
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
def test_a_uri_without_a_password_is_accepted(key: str, uri: str) -> None:
    """User names, ports, and file names with colons and at signs are no passwords."""
    assert parse_settings(TREE | URIS[key](uri))


def test_all_mistakes_are_reported_in_one_line() -> None:
    message = error_message({"backbone": {"model": 3}, "data": {"train": "t", "txt": "x"}})
    for part in ("'backbone.model' is 3", "unknown setting 'data.txt'", "'store' is missing"):
        assert part in message


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("seed=7", "seed", 7),
        ("probe.penalties=4", "probe.penalties", 4),
        ("sites=[ffn.01, resid]", "sites", ("ffn.01", "resid")),
        ("mlflow.tracking_uri=http://host:5000?a=b", "mlflow.tracking_uri", "http://host:5000?a=b"),
        ("poolings=null", "poolings", None),
        ("search.etas=[1]", "search.etas", (1.0,)),
    ],
)
def test_an_override_replaces_one_value(tmp_path: Path, override: str, key: str, value: object) -> None:
    """The value after the first `=` is read as YAML; the file may lack the section of the key."""
    node: Any = load_settings(write_settings(tmp_path, yaml.safe_dump(TREE)), [override])
    for name in key.split("."):
        node = getattr(node, name)
    assert node == value


def test_the_last_override_of_a_key_wins(tmp_path: Path) -> None:
    assert load_settings(write_settings(tmp_path, yaml.safe_dump(TREE)), ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set seed: expected a.b=value"),
        ("=3", "--set =3: expected a.b=value"),
        ("data.train.kind=s3", "--set data.train.kind=s3: 'train' is a value, it has no 'kind'"),
        ("store.kind=s3", "unknown setting 'store.kind'"),
        ("store.uri.kind=s3", "--set store.uri.kind=s3: 'uri' is a value, it has no 'kind'"),
        ("seed=[1", "--set seed=[1: '[1' is not YAML"),
        ("store=2026-13-01", "--set store=2026-13-01: '2026-13-01' is not YAML"),
        ("seed=", "'seed' is None: Input should be a valid integer"),
        ("sed=3", "unknown setting 'sed'"),
        ("probe.sed=3", "unknown setting 'probe.sed'"),
        ("probe=3", "'probe' is 3"),
    ],
)
def test_a_mistake_in_an_override_is_reported_in_one_line(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        load_settings(write_settings(tmp_path, yaml.safe_dump(TREE)), [override])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example("seed=!!int x")
@given(st.text(string.printable.replace("\n", ""), max_size=20) | st.builds("seed={}".format, st.text(max_size=9)))
def test_any_override_gives_settings_or_a_user_error(tmp_path: Path, override: str) -> None:
    path = tmp_path / "spin.yaml"
    if not path.exists():
        write_settings(tmp_path, yaml.safe_dump(TREE))
    with suppress(UserError):
        assert isinstance(load_settings(path, [override]), Settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2", "cannot be read as YAML"),
        ("store: 2026-13-01", "cannot be read as YAML"),
        ("- a\n- b", "holds list, expected a mapping of settings"),
        ("", "holds NoneType, expected a mapping"),
    ],
)
def test_a_file_that_does_not_hold_settings_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    """The message names the file and what it holds. The message of the YAML library has several lines."""
    path = write_settings(tmp_path, text)
    with pytest.raises(UserError) as raised:
        load_settings(path)
    assert str(raised.value).startswith(str(path))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_settings_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """The file is missing, is a folder, or is not UTF-8."""
    with pytest.raises(UserError, match=r"no settings file at .*missing\.yaml; `spin init .*missing\.yaml` writes one"):
        load_settings(tmp_path / "missing.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load_settings(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"store: caf\xe9")
    with pytest.raises(UserError, match="cannot be read"):
        load_settings(tmp_path / "latin.yaml")


def test_default_values_are_valid() -> None:
    """pydantic does not validate defaults, so the test passes them as values."""
    assert SearchSettings(**SearchSettings().model_dump()) == SearchSettings()
    full = parse_settings(TREE)
    assert parse_settings(full.model_dump()) == full


@given(sites, st.sampled_from([pooling.name for pooling in POOLINGS]))
def test_sites_and_feature_columns_are_parsed_from_their_text_forms(site: Site, pooling: str) -> None:
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
def test_any_text_is_a_site_in_its_text_form_or_a_user_error(text: str) -> None:
    """The same holds for feature columns."""
    for kind in (Site, FeatureColumn):
        with suppress(UserError):
            assert str(kind.parse(text)) == text


def test_sites_sort_in_the_order_of_the_forward_pass() -> None:
    """Sites sort by layer; within a block the FFN comes before the residual stream, to which it is added."""
    texts = ["resid.00", "ffn.01", "resid.01", "ffn.02", "resid.02", "ffn.10", "resid.10"]
    assert [str(s) for s in sorted(Site.parse(t) for t in reversed(texts))] == texts


SITES = [Site.parse(t) for t in ("resid.00", "ffn.01", "resid.01", "ffn.02", "resid.02")]


def test_chosen_sites_are_in_the_order_of_the_model() -> None:
    """A kind stands for all of its layers, and a repeated site counts once."""
    assert choose_sites(["resid", "ffn"], SITES) == SITES
    assert list(map(str, choose_sites(["resid.02", "ffn", "ffn.01"], SITES))) == ["ffn.01", "ffn.02", "resid.02"]


@pytest.mark.parametrize(
    ("names", "sites", "message"),
    [
        (["ffn.03"], SITES, "the backbone has no 'ffn.03'; it has resid.00 to resid.02, ffn.01 to ffn.02"),
        (["resid", "final.02"], SITES, "the backbone has no 'final.02'"),
        (["ffn"], [s for s in SITES if s.kind == "resid"], "no 'ffn'; it has resid.00 to resid.02"),
        (["attention"], SITES, "'attention' is not a site; expected resid.NN"),
        (["ffn.1"], SITES, "'ffn.1' is not a site"),
        (["ffn.00"], SITES, "'ffn.00' is not a site"),
        ([], SITES, "sites: the list is empty; expected resid, ffn"),
    ],
)
def test_sites_that_cannot_be_chosen_are_refused(names: list[str], sites: list[Site], message: str) -> None:
    """The message about a site that the backbone lacks names the sites that it has."""
    with pytest.raises(UserError) as raised:
        choose_sites(names, sites)
    assert message in str(raised.value)


def test_splits_have_the_requested_shares_with_any_seed() -> None:
    """The shares hold within four standard deviations; a share of zero gives no document."""
    n = 20000
    for seed, valid, test in [(0, 0.15, 0.15), (1, 0.1, 0.4), (2, 0.3, 0.0)]:
        splits = [assign_split(f"doc-{i}", seed, valid, test) for i in range(n)]
        for name, share in zip(SPLITS, (1 - valid - test, valid, test), strict=True):
            assert abs(splits.count(name) - share * n) <= 4 * (share * (1 - share) * n) ** 0.5


@given(st.lists(st.text(), unique=True, min_size=1), st.integers(-5, 5), st.data())
def test_added_documents_do_not_change_the_split_of_others(ids: list[str], seed: int, data: st.DataObject) -> None:
    """A document's split depends only on its id and the seed, not on its position."""
    before = {i: assign_split(i, seed, 0.2, 0.2) for i in ids}
    all_ids = data.draw(st.permutations([*ids, *data.draw(st.lists(st.text(), max_size=5))]))
    after = {i: assign_split(i, seed, 0.2, 0.2) for i in all_ids}
    assert {i: after[i] for i in ids} == before


def test_a_larger_test_fraction_only_adds_documents_to_the_test_split() -> None:
    """A different seed gives a different split."""
    ids = list(map(str, range(2000)))
    small = {i for i in ids if assign_split(i, 0, 0.2, 0.1) == "test"}
    assert small < {i for i in ids if assign_split(i, 0, 0.2, 0.3) == "test"}
    assert small != {i for i in ids if assign_split(i, 1, 0.2, 0.1) == "test"}
    assert assign_split("\ud800", 0, 0.2, 0.2) in SPLITS  # a lone surrogate, as JSON can hold


def test_rows_in_split_returns_the_indices_of_its_rows() -> None:
    assert rows_in_split(["train", "valid", "train"], "train").tolist() == [0, 2]
    assert rows_in_split([], "train").shape == (0,)


def test_a_stage_may_override_the_workers_of_all_stages() -> None:
    """Values that a stage does not set are those of all stages."""
    workers = {"workers": 4, "cpus_per_worker": 2, "probe": {"workers": 1}, "classify": {"gpus_per_worker": 0.5}}
    ray = parse_settings({**TREE, "ray": workers}).ray
    stages = [ray.for_stage(stage) for stage in get_args(Stage)]
    assert [(stage.workers, stage.cpus_per_worker, stage.gpus_per_worker) for stage in stages] == [
        (4, 2, 0),
        (1, 2, 0),
        (4, 2, 0),
        (4, 2, 0.5),
    ]


@pytest.mark.parametrize(
    ("ray", "message"),
    [
        ({"workers": 2, "min_workers": 3}, "min_workers of extract is 3, workers 2; expected at least min_workers"),
        ({"min_workers": 3, "train": {"workers": 2}}, "min_workers of train is 3, workers 2"),
        ({"workers": 2, "classify": {"min_workers": 3}}, "min_workers of classify is 3, workers 2"),
        ({"workers": 0, "min_workers": 1}, "min_workers of extract is 1, workers 0"),
        ({"extract": {"worker": 2}}, "unknown setting 'ray.extract.worker'"),
    ],
)
def test_min_workers_above_workers_is_refused(ray: dict[str, Any], message: str) -> None:
    """An unknown setting of a stage is refused as well."""
    assert message in error_message({**TREE, "ray": ray})


@given(
    st.text(string.ascii_letters + string.digits + "-._~%!$&+,;=:", min_size=4),
    st.sampled_from(["http", "s3", "postgresql"]),
    st.sampled_from(["", "/path/x@y", ":8265/"]),
)
def test_the_part_of_a_uri_before_the_at_sign_is_masked_in_messages(token: str, scheme: str, rest: str) -> None:
    """It may be a token. The host and the path stay, and so does the text around the URI."""
    uri = f"{scheme}://{token}@host.example{rest}"
    assert holds_user_part(uri)
    masked = f"{scheme}://***@host.example{rest}"
    assert mask_credentials(f"registry {uri} is down, and {uri} too") == f"registry {masked} is down, and {masked} too"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("http://u:pa/ss@host/x", "http://***@host/x"),
        ("http://a@b:c@host/x", "http://***@host/x"),
        ("https://h/x?user=me&password=hush&page=2", "https://h/x?user=me&password=***&page=2"),
        (
            "https://h/x?X-Amz-Signature=hush&X-Amz-Security-Token=hush",
            "https://h/x?X-Amz-Signature=***&X-Amz-Security-Token=***",
        ),
        ("https://h.blob/x?sv=2024&sig=hush%3D&se=1", "https://h.blob/x?sv=2024&sig=***&se=1"),
        ("refused: api_key=hush, OPENAI_API_KEY='hush'", "refused: api_key=***, OPENAI_API_KEY='***'"),
        ('{"password": "hush", "user": "me"}', '{"password": "***", "user": "me"}'),
        ("[('x-api-key', 'hush')]", "[('x-api-key', '***')]"),
        ("aws_secret_access_key=hu/sh+ is wrong", "aws_secret_access_key=*** is wrong"),
        ("the key AKIAIOSFODNN7EXAMPLE does not exist", "the key *** does not exist"),
        ("header Authorization: Basic aHVzaDpodXNo", "header Authorization: Basic ***"),
        ("401 for Bearer eyJhbGciOi.J9-_hush==", "401 for Bearer ***"),
        (f"token hf_{'h' * 34} is not valid", "token *** is not valid"),
        (f"token github_pat_{'h' * 22}_{'h' * 59} is not valid", "token *** is not valid"),
        ("PGPASSWORD=hush psql, clientSecret=hush", "PGPASSWORD=*** psql, clientSecret=***"),
        ("api_key = 'hush', db-password = hush", "api_key = '***', db-password = ***"),
        ("password: hush4me is wrong", "password: *** is wrong"),
        ("user: me\npassword: hush\napi_key: 'hush hush'\n", "user: me\npassword: ***\napi_key: '***'\n"),
        ("password=\"hush, hush\" and secret='it\\'s hush'", "password=\"***\" and secret='***'"),
        ('{"password": "hush it\'s, hush", "user": "me"}', '{"password": "***", "user": "me"}'),
    ],
)
def test_passwords_and_secret_parameters_are_masked(text: str, masked: str) -> None:
    assert mask_credentials(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a@b.jsonl",
        "http://head:8265 of me@example.com",
        "/data/passwords=1:2@3.csv",
        "a@b",
        "tokens=3, max_tokens=128, design=x, config=y",
        "expected a bearer token, a password: none is set",
        "s3://b/signature=v2/part.parquet",
        "/data/session_key=1/f.parquet, /data/region=a/my-api_key=1/f.parquet",
    ],
)
def test_at_signs_and_words_elsewhere_are_not_masked(text: str) -> None:
    assert mask_credentials(text) == text
    assert not holds_user_part(text)


@pytest.mark.parametrize(
    "part",
    [
        "://:",
        "://a:b",
        "://",
        "?pass",
        "?a-pass",
        "&api_key",
        "api_key-",
        "'password':",
        "password: ",
        "secret='",
        "/sig=",
        "bearer ",
        "a@",
        "://@",
        "-_",
    ],
)
@pytest.mark.parametrize(
    "end", ["", "@", " @", "=", " =x"], ids=["nothing", "at", "blank-at", "equals", "blank-equals"]
)
def test_masking_takes_time_in_proportion_to_the_text(part: str, end: str) -> None:
    """A name of a column may consist of the beginnings of credentials."""
    text = part * (300_000 // len(part)) + end
    start = time.process_time()
    mask_credentials(text)
    holds_password(text)
    holds_user_part(text)
    assert time.process_time() - start < 3


def test_a_token_in_an_override_is_not_shown(tmp_path: Path) -> None:
    """Neither where the override is no setting nor where its value is not YAML."""
    path = write_settings(tmp_path, yaml.safe_dump(TREE))
    for override in ("http://hush@host", "seed=http://hush@host", "seed.x=http://hush@host", "store=[http://hush@host"):
        with pytest.raises(UserError) as error:
            load_settings(path, [override])
        assert "***@host" in str(error.value)
        assert "hush" not in str(error.value)


def test_windows_must_read_something_new() -> None:
    """The overlap counts only where long texts are read in windows."""
    tree = {"data": {"train": "t"}, "store": "s"}
    with pytest.raises(UserError, match="'backbone' is .*: window_overlap 32: expected less than max_tokens, "):
        parse_settings({**tree, "backbone": {"model": "x", "max_tokens": 16, "long_texts": "windows"}})
    assert BackboneSettings(model="x", max_tokens=16).long_texts == "cut"
    assert BackboneSettings(model="x", max_tokens=16, long_texts="windows", window_overlap=15).max_windows == 16


def test_plans_name_how_files_are_read() -> None:
    """Two names of an encoding are one; the limits are among what is named."""
    default = DataSettings(train="t", encoding="UTF8").file_format()
    assert (default["delimiter"], default["encoding"], default["max_columns"]) == ("auto", "utf-8", 10_000)
    data = DataSettings(train="t", encoding="Windows-1252", delimiter=";")
    assert data.file_format() == {**default, "delimiter": ";", "encoding": "cp1252"}
