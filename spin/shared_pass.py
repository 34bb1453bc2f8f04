"""Several classifiers in one forward pass for all that read the same backbone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spin.activations.extract import Progress
from spin.activations.features import Features
from spin.classifier import TrainedClassifier, checked_texts
from spin.passes.forward_pass import ForwardPass
from spin.predictions import Predictions

_SOURCE = frozenset({"model", "revision", "trust_remote_code", "scales"})
"""settings of a backbone that say where it and its scales come from: what it computes is in their digests"""
_OF_WINDOWS = frozenset({"window_overlap", "max_windows"})
"""settings of a backbone that count only where long texts are read in windows"""


def classify_many(classifiers: Sequence[TrainedClassifier], texts: Iterable[str]) -> list[Predictions]:
    """The predictions of several classifiers for n texts, one for each classifier, in order.

    Classifiers with the same backbone and settings of it share a forward pass, as in `SharedPass`. To classify again
    and again, keep a `SharedPass`, which opens its engines once. Raises UserError for texts that are not text, and
    NotFiniteError for all if one classifier's activations are not finite.
    """
    return SharedPass(classifiers).predict_all(texts)


class SharedPass:
    """Reads the activations that several classifiers need, in a single forward pass for all that can share one.

    Those can whose backbones have the same weights and the same settings, except for where they were loaded from, and
    in int8 the same scales. They then share one loaded backbone, truncated at the largest depth. A text leaves the pass
    when every classifier has decided it: by words, at one of its own exits, or at its own full depth. Full depth of the
    embeddings alone is the end of the first segment. A classifier that gives reasons shares the loaded backbone, but
    has a pass of its own, in which its head weighs the tokens.
    """

    groups: list[list[int]]
    """the indices of the classifiers that share a pass"""

    def __init__(self, classifiers: Sequence[TrainedClassifier]) -> None:
        self.classifiers = tuple(classifiers)
        backbones: dict[tuple[str | None, ...], list[int]] = {}
        for index, spin in enumerate(self.classifiers):
            backbones.setdefault(_backbone_key(spin), []).append(index)
        self._of_backbone = [[self.classifiers[index] for index in indices] for indices in backbones.values()]
        """the classifiers of each backbone"""
        self._is_prepared = False
        self.groups = []
        for indices in backbones.values():
            together = [index for index in indices if not self.classifiers[index].reasons]
            alone = [[index] for index in indices if self.classifiers[index].reasons]
            self.groups += sorted([*alone, *([together] if together else [])])
        self._joint: dict[int, ForwardPass] = {}
        """the pass of each group of several, by its first classifier; one that is alone has its own"""

    def prepare(self) -> None:
        """Load the backbones and open their engines now rather than at the first text.

        Raises as `TrainedClassifier.prepare` does.
        """
        if not self._is_prepared:
            self.share_backbones()
            for index, *others in self.groups:
                spins = [self.classifiers[each] for each in (index, *others)]
                if others:
                    self._joint[index] = ForwardPass([spin.member for spin in spins], spins[0].backbone)
                else:
                    spins[0].prepare()
            self._is_prepared = True

    def share_backbones(self) -> None:
        """Load each backbone for all classifiers that read it, without opening an engine for these together."""
        for classifiers in self._of_backbone:
            deepest = max(classifiers, key=lambda spin: spin.depth)
            for spin in classifiers if len(classifiers) > 1 else ():
                spin.share_backbone(deepest)

    def features(self, texts: Iterable[str], *, progress: Progress = lambda documents: None) -> list[Features]:
        """The features of each classifier, in order, with the values of `TrainedClassifier.features`.

        In torch in float32 without exits the values are the same bit for bit. Batches depend on the texts alone, and no
        block depends on the blocks above it. Otherwise they are the same up to rounding. The documents that go on after
        an exit are other ones, and in OpenVINO a value's last bits depend on what else its graph outputs. Raises
        NotFiniteError for all if one classifier's activations are not finite. `progress` takes the documents that the
        last group has done with.
        """
        texts = checked_texts(texts)
        features: dict[int, Features] = {}
        for group, forward_pass in zip(self.groups, self._open_passes(), strict=True):
            is_last = group is self.groups[-1]
            of_group = forward_pass.features(texts, progress if is_last else lambda documents: None)
            features.update(zip(group, of_group, strict=True))
        return [features[index] for index in range(len(self.classifiers))]

    def run_backbones(self, texts: Sequence[str]) -> None:
        """Run every backbone on texts, also on those that words decide. Raises what that raises."""
        for forward_pass in self._open_passes():
            forward_pass.features(texts, read_all=True)

    def predict_all(self, texts: Iterable[str]) -> list[Predictions]:
        """The predictions of each classifier for n texts, in order."""
        features = self.features(texts)
        return [spin.predict_features(own) for spin, own in zip(self.classifiers, features, strict=True)]

    def _open_passes(self) -> list[ForwardPass]:
        """The pass of each group."""
        self.prepare()
        return [self._joint.get(group[0]) or self.classifiers[group[0]].forward_pass for group in self.groups]


def _backbone_key(spin: TrainedClassifier) -> tuple[str | None, ...]:
    """A key that is equal for classifiers that can share a pass: the weights, and all settings that change values."""
    unused = frozenset() if spin.settings.long_texts == "windows" else _OF_WINDOWS
    return spin.backbone_digest, spin.settings.model_dump_json(exclude=set(_SOURCE | unused)), spin.scales_digest
