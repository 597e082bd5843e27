"""Point-wise transforms that bring the wide range of a map's values into reach of a model, and back."""

from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

Floats = NDArray[np.float64]


class TransformKind(StrEnum):
    """The shape of a transform, before its z-score."""

    LOG = "log"
    """log10(x / scale + 1), for what is never negative and spans many decades."""
    ASINH = "asinh"
    """arcsinh(x / scale), like a logarithm at both ends and linear around 0: for what has a sign."""
    LINEAR = "linear"
    """x / scale."""


class ChannelTransform(BaseModel):
    """What becomes of the values of a channel before their z-score; the default is log10(x + 1)."""

    model_config = ConfigDict(frozen=True, extra="forbid", field_title_generator=lambda name, _: name)

    kind: TransformKind = Field(
        TransformKind.LOG,
        description="log: log10(x / scale + 1), for masses and the like; asinh: arcsinh(x / scale), for what has a "
        "sign; linear: x / scale.",
    )
    scale: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="What x is divided by, in the channel's own unit per pixel."
    )

    def __str__(self) -> str:
        """Return the formula."""
        x = "x" if self.scale == 1.0 else f"x / {self.scale!r}"
        return {
            TransformKind.LOG: f"log10({x} + 1)",
            TransformKind.ASINH: f"arcsinh({x})",
            TransformKind.LINEAR: x,
        }[self.kind]

    def apply(self, values: ArrayLike) -> Floats:
        """Return the transformed values, in double precision."""
        seen = np.array(values, dtype=np.float64)
        if self.scale != 1.0:
            seen /= self.scale
        match self.kind:
            case TransformKind.LOG:
                seen += 1.0
                np.log10(seen, out=seen)
            case TransformKind.ASINH:
                np.arcsinh(seen, out=seen)
            case TransformKind.LINEAR:
                pass
        return seen

    def invert(self, transformed: ArrayLike) -> Floats:
        """Return the values that `apply` would have transformed into these, in double precision."""
        seen = np.asarray(transformed, dtype=np.float64)
        match self.kind:
            case TransformKind.LOG:
                scaled = np.power(10.0, seen) - 1.0
            case TransformKind.ASINH:
                scaled = np.sinh(seen)
            case TransformKind.LINEAR:
                scaled = seen
        return scaled * self.scale


class ChannelTransforms(BaseModel):
    """The transform of each map of the contract; further fields carry their own."""

    model_config = ConfigDict(frozen=True, extra="forbid", field_title_generator=lambda name, _: name)

    condition: ChannelTransform = Field(ChannelTransform(), description="Of the condition.")
    large_scale: ChannelTransform = Field(ChannelTransform(), description="Of all context maps.")
    dark_matter: ChannelTransform = Field(ChannelTransform(), description="Of the target's dark matter.")
    gas: ChannelTransform = Field(ChannelTransform(), description="Of the target's gas.")
    stars: ChannelTransform = Field(ChannelTransform(), description="Of the target's stars.")

    def by_channel(self) -> dict[str, ChannelTransform]:
        """Return the transforms by the names of their channels."""
        return {name: getattr(self, name) for name in type(self).model_fields}
