"""The scales by which inputs of linear maps are rounded to int8, which the engines measure and apply."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save
from torch import Tensor

from spin.errors import UserError

SMOOTHING = 0.75
"""the exponent alpha of SmoothQuant (Xiao et al. 2023, arXiv 2211.10438, equation 4)

Median correlation of a neuron's mean over a text with its float32 value, at the worst of some sites, without smoothing
and with 0.5, 0.75 and 0.9: MiniLM 0.987, 0.975, 0.996 and 0.995; SmolLM2-135M, of which single inputs reach 3,569,
0.87, 0.979 and 0.968 with smoothing.
"""
_RARE = 0.1
"""inputs count as at least this share of the median largest input: one that no measured text activates may yet come"""
INPUT_STEPS = 255
"""between the least and the largest input"""


@dataclass(frozen=True)
class InputScale:
    """How the input of a linear map is rounded to the integers from 0 to 255."""

    factors: Tensor
    """(p,) what each of the p inputs is multiplied by before, and its weights are divided by"""
    step: float
    """the distance of two integers"""
    zero: int
    """the integer of 0"""

    @classmethod
    def of(cls, low: Tensor, high: Tensor, weight: Tensor) -> InputScale:
        """The scale of inputs between `low` and `high` (p,) of a map with `weight` (outputs, p).

        Inputs with large values would leave few integers to all others. So each is made smaller by a power of its
        largest value, and its weights, which have integers of their own for each output, larger.
        """
        largest = torch.maximum(-low, high)
        largest = largest.clamp(min=max(_RARE * float(largest.median()), 1e-5))
        factors = weight.abs().amax(0).clamp(min=1e-5) ** (1 - SMOOTHING) / largest**SMOOTHING
        least, most = (float((bound * factors).aminmax()[end]) for end, bound in enumerate((low, high)))
        least, most = min(least, 0.0), max(most, 0.0)  # zero has an integer of its own
        step = (most - least) / INPUT_STEPS or 1.0
        return cls(factors, step, round(-least / step))


@dataclass(frozen=True)
class Int8Scales:
    """How the inputs of the linear maps in the blocks are rounded, by the names of the maps."""

    by_map: Mapping[str, InputScale]

    @cached_property
    def digest(self) -> str:
        """sha256, in hexadecimal digits: the same for scales by which a backbone computes the same."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_tensors(self) -> dict[str, NDArray[Any]]:
        """The scales as arrays, three for each map."""
        tensors: dict[str, NDArray[Any]] = {}
        for name, scale in self.by_map.items():
            tensors[f"{name}.factors"] = scale.factors.numpy()
            tensors[f"{name}.step"], tensors[f"{name}.zero"] = np.array([scale.step]), np.array([scale.zero])
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[Any]]) -> Int8Scales:
        """What `to_tensors` returned. Raises UserError for arrays that are missing, or cannot be scales."""
        names = {name.rpartition(".")[0] for name in tensors}
        if missing := {f"{name}.{part}" for name in names for part in ("factors", "step", "zero")} - tensors.keys():
            raise UserError(f"found int8 scales without {min(missing)}; train again")
        scales: dict[str, InputScale] = {}
        for name in sorted(names):
            factors, step, zero = (tensors[f"{name}.{part}"] for part in ("factors", "step", "zero"))
            if not (
                (factors.ndim, factors.dtype, step.size, zero.size) == (1, np.float32, 1, 1)
                and (np.isfinite(factors) & (factors > 0)).all()
                and 0 < step.item() < np.inf
                and zero.item() in range(INPUT_STEPS + 1)
            ):
                raise UserError(f"found int8 scales of {name} that no training writes; train again")
            scales[name] = InputScale(torch.from_numpy(factors.copy()), float(step.item()), int(zero.item()))
        return cls(scales)

    def to_bytes(self) -> bytes:
        """The scales as safetensors."""
        return save(self.to_tensors())

    @classmethod
    def from_bytes(cls, content: bytes) -> Int8Scales:
        """What `to_bytes` returned."""
        return cls.from_tensors(load(content))
