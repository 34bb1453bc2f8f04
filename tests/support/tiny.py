"""Tiny random backbones with real tokenizers, and tiny corpora, all made in code."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, PreTrainedTokenizerFast

from spin.backbone.hub import silence_transformers

WORDS = {
    "good": ["fine", "lovely", "great", "warm", "bright"],
    "bad": ["awful", "cold", "broken", "late", "dull"],
    "plain": ["table", "seven", "paper", "under", "walks"],
}
FILLER = ["the", "a", "was", "film", "crew", "and", "it", "on", "of", "day"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def tokenizer(*, side: str = "right", pad: bool = True, special: bool = True) -> PreTrainedTokenizerFast:
    """A word-level tokenizer; `special` adds [CLS] and [SEP] as an encoder's does, else [CLS] alone, as a decoder's."""
    words = SPECIAL + [w for of in WORDS.values() for w in of] + FILLER + [".", "!"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    ids = [("[CLS]", 2), ("[SEP]", 3)]
    single = "[CLS] $A [SEP]" if special else "[CLS] $A"
    core.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"} | ({"pad_token": "[PAD]"} if pad else {})
    return PreTrainedTokenizerFast(tokenizer_object=core, padding_side=side, model_max_length=64, **names)


def save_backbone(folder: Path, config: Any, words: PreTrainedTokenizerFast | None = None, seed: int = 0) -> Path:
    """A random model of a Hugging Face config, in a folder that `backbone.model` can name."""
    torch.manual_seed(seed)
    with silence_transformers():
        AutoModel.from_config(config).save_pretrained(folder)
        (words or tokenizer()).save_pretrained(folder)
    return folder


def bert(folder: Path, seed: int = 0, *, wide: int = 16, neurons: int = 24) -> Path:
    """An encoder of 3 blocks, large weights, so that its layers differ."""
    from transformers import BertConfig

    return save_backbone(
        folder,
        BertConfig(
            vocab_size=64,
            hidden_size=wide,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=neurons,
            max_position_embeddings=64,
            initializer_range=0.6,
        ),
        seed=seed,
    )


def coded(folder: Path, mark: Path) -> Path:
    """A model and a tokenizer of code that lies beside them and leaves a mark when it runs."""
    bert(folder)
    code = (
        "from pathlib import Path\nfrom transformers import BertConfig, BertModel, PreTrainedTokenizerFast\n"
        f"Path({str(mark)!r}).touch()\n"
        "class OddConfig(BertConfig):\n    model_type = 'odd'\n"
        "class OddModel(BertModel):\n    config_class = OddConfig\n"
        "class OddTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    (folder / "odd.py").write_text(code)
    maps = {
        "config.json": {"model_type": "odd", "auto_map": {"AutoConfig": "odd.OddConfig", "AutoModel": "odd.OddModel"}},
        "tokenizer_config.json": {"auto_map": {"AutoTokenizer": [None, "odd.OddTokenizer"]}},
    }
    for name, more in maps.items():
        (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **more}))
    return folder


def documents(count: int, classes: Sequence[str] = ("good", "bad"), seed: int = 0) -> list[dict[str, str]]:
    """id, text and label: a text holds words of its class among fillers, so that it can be learned."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        label = classes[number % len(classes)]
        words = draw.choices(FILLER, k=draw.randint(2, 9)) + draw.choices(WORDS[label], k=2)
        draw.shuffle(words)
        made.append({"id": f"d{number:05d}", "text": " ".join(words), "label": label})
    return made
