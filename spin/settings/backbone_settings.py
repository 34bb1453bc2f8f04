"""The section `backbone`, and the ways in which a backbone is read."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from spin.settings.section import Section

TRAINED_SETTINGS = ("max_tokens", "long_texts", "window_overlap", "max_windows", "pool_special_tokens")
"""settings of a backbone that a classifier keeps from its training, since they decide what its neurons do"""


Precision = Literal["auto", "float32", "bfloat16", "int8"]
OF_INT8 = {"engine": "auto", "device": "auto"}
"""what replaces an engine and a device that were chosen for another precision, where a version is run in int8"""


class BackboneSettings(Section):
    """The language model. Its weights are never changed; the classifier reads what its neurons do."""

    model: str = Field(
        description="Which model: the id of a model on Hugging Face, a directory with its files, a .gguf file, or "
        "package:IMPORT_NAME/PATH for files inside an installed Python package."
    )
    revision: str | None = Field(
        None,
        description="Version of a Hugging Face model: a commit, tag or branch. Name a commit, so that the weights "
        "cannot change. Default: the newest.",
    )
    dtype: Precision = Field(
        "auto",
        description="Precision in which the model computes. auto: bfloat16 where the hardware is faster in it, else "
        "float32. A training on 5,000 labelled documents or more tries int8 with an encoder in OpenVINO, and takes it "
        "if a plain classifier loses at most 0.2 points. A version that was trained in int8 is run in it. int8 needs "
        "the extra `openvino`, and a processor with VNNI or AMX.",
    )
    scales: str | None = Field(
        None,
        description="The version whose scales a training in int8 takes over, models:/NAME/VERSION, or the folder of a "
        "saved classifier. Classifiers need the same scales to share a forward pass. Default: the training measures "
        "its own.",
    )
    engine: Literal["auto", "torch", "openvino"] = Field(
        "auto",
        description="Library that runs the model. auto: OpenVINO on a processor, where it is installed and agrees "
        "with PyTorch in a trial; else PyTorch.",
    )
    max_tokens: int = Field(
        256, ge=4, description="Length limit in tokens, of a text or, with `long_texts: windows`, of a window of it."
    )
    long_texts: Literal["cut", "windows"] = Field(
        "cut",
        description="How a text of more than `max_tokens` is read. cut: its end is cut off; such texts are counted. "
        "windows: in windows of `max_tokens` each, whose activations are pooled as those of one text.",
    )
    window_overlap: int = Field(
        32,
        ge=0,
        description="With windows: tokens at the end of a window that the next one reads again as context. They are "
        "pooled once.",
    )
    max_windows: int = Field(
        16,
        ge=1,
        description="With windows: number of windows of a text that are read. The tokens of a text beyond them are "
        "not read, and counted per row and per night.",
    )
    batch_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens per forward pass, padding included. Default: as many as the memory of a GPU has room "
        "for, 2048 on a processor.",
    )
    device: str = Field(
        "auto",
        description="auto, cpu, cuda or cuda:N. auto: a GPU where workers are given one (ray.gpus_per_worker), "
        "else the processor; in Python, a GPU if there is one.",
    )
    compile: bool = Field(
        False,
        description="On a GPU, compile the model, which takes each worker about a minute, and use the compiled one "
        "where it is clearly faster.",
    )
    pool_special_tokens: bool = Field(
        False,
        description="Let the poolings mean and max include special tokens and the first position of a decoder. "
        "Default: they cover the tokens of the text alone.",
    )
    trust_remote_code: bool = Field(
        False,
        description="Run Python code that comes with the model. Only for a model whose code you have read. "
        "Default: a model that needs it is refused.",
    )

    @model_validator(mode="after")
    def _windows_advance(self) -> BackboneSettings:
        if self.long_texts == "windows" and self.window_overlap >= self.max_tokens:
            raise ValueError(
                f"window_overlap {self.window_overlap}: expected less than max_tokens, which is {self.max_tokens}, so "
                "that every window reads something new"
            )
        return self


def choose_precision(given: Precision, trained: Precision) -> Precision:
    """The setting `dtype` by which a trained classifier is run, from the given one and that of its training.

    Heads that were fitted on what int8 computes are run in int8, unless float32 or bfloat16 is asked for. In int8 only
    these are: another classifier, which has no scales, is then run as it was trained.
    """
    return trained if given == "int8" or (given == "auto" and trained == "int8") else given
