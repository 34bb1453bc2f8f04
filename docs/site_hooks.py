"""Hooks of mkdocs: pages that are generated from the code at build time, pages from outside `docs`, and formulas.

Nothing that is generated is committed, so that it cannot be out of date. `mkdocs.yml` names this module.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import typer
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import spin
from jobs.cli import app
from jobs.settings_template import settings_schema
from spin.settings import Settings

ROOT = Path(__file__).parents[1]
TASKS = {
    "benchmarks/speed-debian.md": "Speed on Debian packages",
    "benchmarks/speed-manuals.md": "Speed on manual pages",
    "benchmarks/method-debian.md": "The method on Debian packages",
    "benchmarks/method-debtags.md": "The method on tags of Debian packages",
    "benchmarks/method-manuals.md": "The method on manual pages",
    "benchmarks/finetune.md": "SPIN and the fine-tuned encoder",
    "benchmarks/regret.md": "The regret of the default",
    "benchmarks/gpu.md": "GPU",
}
"""pages of `make bench TASK=…`, `make bench-method TASK=…`, `make bench-finetune`, `make bench-regret` and
`make bench-gpu` with their titles; they are written one at a time"""
OUTSIDE = (
    "benchmarks/speed.md",
    "benchmarks/method.md",
    *TASKS,
    "benchmarks/limits.md",
    "benchmarks/trust.md",
    "infra/README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
)
"""pages of the site that are kept outside `docs`; those that do not exist are left out"""
_OUTWARD = re.compile(
    r"\]\((?:\.\./)((?:\.\./)*)((?:benchmarks/|infra/README\.md|CHANGELOG\.md|CONTRIBUTING\.md)[^)]*)\)"
)
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the generated pages, and those from outside that exist, to the navigation."""
    nav: list[Any] = config.nav or []
    reference = next(section["Reference"] for section in nav if "Reference" in section)
    api = [{name: _api_path(name)} for name in api_packages()]
    reference += [
        {"Settings": "reference/settings.md"},
        {"Command line": "reference/command-line.md"},
        {"Python API": [{"Overview": "reference/api/index.md"}, *api]},
    ]
    benchmarks = next(section["Benchmarks"] for section in nav if "Benchmarks" in section)
    benchmarks += [{title: path} for path, title in TASKS.items() if (ROOT / path).exists()]
    project = {"infra/README.md": "Runbook", "CHANGELOG.md": "Changelog", "CONTRIBUTING.md": "Contributing"}
    nav.append({"Project": [{title: path} for path, title in project.items() if (ROOT / path).exists()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and those from outside to the files of the site."""
    pages = {
        "reference/settings.md": settings_page(),
        "reference/command-line.md": command_line_page(),
        "reference/api/index.md": _api_index(),
        **{_api_path(name): _api_page(name) for name in api_packages()},
        **{path: (ROOT / path).read_text(encoding="utf-8") for path in OUTSIDE if (ROOT / path).exists()},
        **{f"notebooks/{path.stem}.md": notebook_page(path) for path in (ROOT / "docs" / "notebooks").glob("*.ipynb")},
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    files.append(File.generated(config, "reference/spin.schema.json", content=settings_schema()))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Point links to notebooks, and between `docs` and the pages kept outside it, to where all are in the site."""
    markdown = markdown.replace(".ipynb)", ".md)")
    if page.file.src_uri.startswith(OUTSIDE):
        return re.sub(r"\]\((?:\.\./)*docs/", "](" + "../" * page.file.src_uri.count("/"), markdown)
    return _OUTWARD.sub(r"](\1\2)", markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Return the page with its formulas as MathML, which browsers show without a script."""

    def formula(match: re.Match[str]) -> str:
        return convert(html.unescape(match[3]), display="block" if match[2] == "[" else "inline")

    return _FORMULA.sub(formula, content)


def notebook_page(notebook: Path) -> str:
    """Return a notebook with its outputs as a page, and below its title a link to the notebook itself."""
    page, _ = MarkdownExporter().from_filename(str(notebook))
    title, rest = page.replace(' class="dataframe"', "").lstrip().split("\n", 1)
    return f'{title}\n\n<a href="{notebook.name}" download>Download the notebook</a>\n{rest}'


def settings_page() -> str:
    """Return the reference of all settings, from their types, defaults and descriptions."""
    parts = [
        "# Settings\n",
        "One YAML file holds the settings of a project. `spin init settings.yaml` writes one with every setting and "
        "its explanation. "
        "An unknown key is an error. `--set A.B=VALUE` overrides one setting for one command. "
        "The [JSON Schema](spin.schema.json) of the file is what `spin init --schema` prints.\n",
        "## Top level\n",
    ]
    sections: list[tuple[str, type[BaseModel]]] = []
    for name, info in Settings.model_fields.items():
        section = _section(info)
        if section is not None:
            sections.append((name, section))
        else:
            parts.append(_setting(name, info))
    for name, section in sections:
        parts += _settings_section(name, section)
    return "\n".join(parts)


def _settings_section(name: str, section: type[BaseModel]) -> Iterator[str]:
    yield f"## {name}\n\n{(section.__doc__ or '').splitlines()[0]}\n"
    inner: dict[type[BaseModel], list[str]] = {}
    for key, info in section.model_fields.items():
        nested = _section(info)
        if nested is None:
            yield _setting(f"{name}.{key}", info)
        else:
            inner.setdefault(nested, []).append(f"{name}.{key}")
    for nested, names in inner.items():
        yield f"### {', '.join(names)}\n\n{(nested.__doc__ or '').splitlines()[0]}\n"
        for key, info in nested.model_fields.items():
            yield _setting(key, info)


def _section(info: FieldInfo) -> type[BaseModel] | None:
    kind: Any = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _setting(name: str, info: FieldInfo) -> str:
    default = (
        "**required**"
        if info.is_required()
        else f"default `{_value(info.get_default(call_default_factory=True, validated_data={}))}`"
    )
    limits = "".join(f", {words}" for words in _limits(info))
    return (
        f'<div class="setting" markdown>\n\n`{name}` &nbsp; {_kind(info.annotation)}{limits}; {default}\n\n'
        f"{_escape(info.description or '')}\n\n</div>\n"
    )


def _kind(annotation: Any) -> str:
    """Return the type of a setting in words."""
    arguments = [a for a in get_args(annotation) if a is not type(None)]
    text = str(annotation)
    if text.startswith("typing.Literal"):
        return "one of " + ", ".join(f"`{value}`" for value in get_args(annotation))
    if text.startswith("typing.Annotated"):
        return _kind(arguments[0])
    if get_origin(annotation) is tuple:
        return f"list of {_kind(arguments[0])}"
    if get_origin(annotation) is dict:
        return f"mapping of class to {_kind(arguments[1])}"
    if len(arguments) == 1:  # optional
        return _kind(arguments[0])
    return {str: "text", int: "integer", float: "number", bool: "`true` or `false`"}.get(annotation, text)


def _limits(info: FieldInfo) -> Iterator[str]:
    names = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    for limit in info.metadata:
        for key, words in names.items():
            if (value := getattr(limit, key, None)) is not None:
                yield f"{words} {value:g}"


def _value(default: Any) -> str:
    if default is None:
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return "[" + ", ".join(_value(value) for value in default) + "]"
    return f"{default:.4g}" if isinstance(default, float) else str(default)


def command_line_page() -> str:
    """Return the reference of all commands, from the typer application."""
    group: Any = typer.main.get_command(app)
    parts = [
        "# Command line\n",
        "`spin --help` lists the commands, `spin COMMAND --help` describes one. Every command ends with one of the "
        "[exit statuses](exit-statuses.md).\n",
        "## spin\n",
        f"{_escape(group.help)}\n",
        _parameters(group),
    ]
    panels: dict[str, list[Any]] = {}
    for command in group.commands.values():
        panels.setdefault(command.rich_help_panel, []).append(command)
    for panel, commands in panels.items():
        parts.append(f"## {panel}\n")
        for command in commands:
            parts += _command_section(f"spin {command.name}", command)
    return "\n".join(parts)


def _command_section(name: str, command: Any) -> list[str]:
    """Return the description of a command, and of its own commands where it is a group."""
    parts = [f"### {name}\n", f"{_escape(command.help)}\n"]
    if hasattr(command, "commands"):
        for inner in command.commands.values():
            parts += _command_section(f"{name} {inner.name}", inner)
        return parts
    return [*parts, f"```text\n{_usage(name, command)}\n```\n", _parameters(command)]


def _usage(name: str, command: Any) -> str:
    words = [name]
    for p in command.params:
        if p.param_type_name == "argument":
            words.append(_metavar(p) if p.required else f"[{_metavar(p)}]")
        elif p.required:
            words.append(f"{p.opts[0]} {_metavar(p)}")
    return " ".join([*words, "[OPTIONS]"])


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _parameters(command: Any) -> str:
    """Return the table of the arguments and options of a command; empty without any."""
    rows = []
    for p in command.params:
        if p.name in ("help", "install_completion", "show_completion"):
            continue
        if p.param_type_name == "argument":
            name = f"`{_metavar(p)}`"
        else:
            name = f"`{p.opts[0]}`" if p.is_flag else f"`{p.opts[0]} {_metavar(p)}`"
        text = _escape(p.help or "").replace("|", "\\|")
        if p.required and p.param_type_name == "option":
            text += " (required)"
        elif p.default not in (None, False, "", [], ()) and not p.required and not callable(p.default):
            text += f" (default: `{p.default}`)"
        rows.append(f"| {name} | {text} |")  # a pipe within backticks does not end a cell
    return "\n".join(["| argument or option | meaning |", "|---|---|", *rows, ""]) if rows else ""


def _escape(text: str) -> str:
    """Return a text whose asterisks, underscores and brackets are shown as they are, except within backticks."""
    parts = " ".join(text.split()).split("`")
    return "`".join(re.sub(r"([*_<\[])", r"\\\1", part) if index % 2 == 0 else part for index, part in enumerate(parts))


def api_packages() -> list[str]:
    """Return the packages of the API reference, in alphabetical order: every folder of modules gets a page."""
    folders = [folder for name in ("spin", "pipelines") for folder in [ROOT / name, *(ROOT / name).iterdir()]]
    return sorted(".".join(folder.relative_to(ROOT).parts) for folder in folders if (folder / "__init__.py").exists())


def _api_path(package: str) -> str:
    return f"reference/api/{package}.md"


def _api_index() -> str:
    rows = "\n".join(f"- [`{name}`]({_api_path(name).rpartition('/')[2]})" for name in api_packages())
    names = ", ".join(f"[`{name}`][{getattr(spin, name).__module__}.{name}]" for name in spin.__all__)
    return (
        "# Python API\n\n`from spin import …` gives the public names: "
        f"{names}. All other modules are documented for those who change the code; they may change between versions."
        f"\n\n{rows}\n"
    )


def _api_page(package: str) -> str:
    """Return a page that lists the modules of a package, each with the documentation of its members."""
    folder = ROOT / package.replace(".", "/")
    modules = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    if "." in package:
        inner = sorted(path for path in folder.glob("*/*.py") if path.stem != "__init__")
        modules += [f"{path.parent.name}.{path.stem}" for path in inner]
    # a section of the settings has no description of its own in `Settings`
    options = "    options: {show_if_no_docstring: true}\n" if package == "spin.settings" else ""
    return f"# {package}\n\n" + "\n".join(f"::: {package}.{module}\n{options}" for module in modules)
