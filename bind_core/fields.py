"""Further target channels, declared in the configuration: a field of the hydrodynamic run's particles, and its weight.

This says what a channel is; `bind_core.field_reading` reads it.
"""

import re
from enum import StrEnum
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from bind_core.sample import TARGET_CHANNELS
from bind_core.transforms import ChannelTransform

MASSES = "Masses"
"""The dataset of masses; where a file has none, its header's MassTable says what each particle weighs."""

_TAKEN_NAMES = frozenset({"condition", "input", "stellar", *TARGET_CHANNELS})
_CONTEXT_NAME = re.compile(r"large_scale(_\d+)?")
_DATASET = r"^([A-Za-z0-9][A-Za-z0-9_.\-]*)?$"


class FieldParticles(StrEnum):
    """The particles of the hydrodynamic run that a field is of."""

    GAS = "gas"
    """PartType0."""
    DARK_MATTER = "dark_matter"
    """PartType1."""
    STARS = "stars"
    """PartType4; with or without wind-phase gas, as the policy for stars says."""
    BLACK_HOLES = "black_holes"
    """PartType5."""


class FieldStatistic(StrEnum):
    """What a pixel holds of the particles that it collects."""

    SUM = "sum"
    """The sum of field times weight."""
    MEAN = "mean"
    """The sum of field times weight over the sum of weights; 0 where there is no weight."""


class ExtraField(BaseModel):
    """A target channel beyond dark matter, gas and stars.

    Datasets are taken in the file's own units, but for Masses, which are taken in Msun/h.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", field_title_generator=lambda name, _: name)

    name: str = Field(
        pattern=r"^[a-z][a-z0-9_]*$",
        max_length=48,
        description="What the channel is called: lower-case letters, digits and underscores.",
    )
    particle_type: FieldParticles = Field(description="The particles: gas, dark_matter, stars or black_holes.")
    field: str = Field(
        "",
        pattern=_DATASET,
        description="Dataset of these particles, e.g. InternalEnergy; in the file's own units, but Masses in Msun/h. "
        "If empty, the weight alone is summed.",
    )
    component: int | None = Field(
        None,
        ge=0,
        description="Column of a field of several, e.g. 4 for oxygen in GFM_Metals; empty for a field of one.",
    )
    weight: str = Field(
        MASSES,
        pattern=_DATASET,
        description="Dataset that each particle's field is multiplied by, Masses in Msun/h (from the header's "
        "MassTable where the particles have none of their own); if empty, every particle weighs 1.",
    )
    statistic: FieldStatistic = Field(
        FieldStatistic.SUM,
        description="sum: field times weight, summed per native pixel; mean: that over the sum of weights, 0 where "
        "there is none.",
    )
    unit: str = Field("", max_length=80, description="Unit of the channel's pixels, in words; for whoever reads it.")
    transform: ChannelTransform = Field(
        ChannelTransform(), description="What becomes of the channel's values before their z-score."
    )

    @field_validator("name")
    @classmethod
    def _name_is_free(cls, name: str) -> str:
        if name in _TAKEN_NAMES or _CONTEXT_NAME.fullmatch(name):
            raise ValueError(f"a map of every sample is called {name} already: choose another name")
        return name

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.field and self.statistic is FieldStatistic.MEAN:
            raise ValueError("statistic: mean needs a field: without one, it would be 1 everywhere")
        if not self.field and self.component is not None:
            raise ValueError(f"component ({self.component}) needs a field that it is a column of")
        return self

    @property
    def content(self) -> dict[str, Any]:
        """The settings that decide what is in a sample: all but the transform and the name of the unit."""
        return self.model_dump(mode="json", exclude={"transform", "unit"})

    @property
    def meaning(self) -> str:
        """What a pixel of the channel holds, in words."""
        field = self.field if self.component is None else f"{self.field}[:, {self.component}]"
        weight = self.weight if self.field else ""
        of = (field or self.weight or "number") + f" of {self.particle_type.value.replace('_', ' ')}"
        if self.statistic is FieldStatistic.MEAN:
            how = f"mean {of}, weighted with {weight}" if weight else f"mean {of}"
        else:
            how = f"sum of {of} times {weight}" if weight else f"sum of {of}"
        return f"{self.name}: {how}" + (f", in {self.unit}" if self.unit else "")


def names_differ(fields: tuple[ExtraField, ...]) -> tuple[ExtraField, ...]:
    """Return the fields.

    Raises
    ------
    ValueError
        If two of them have the same name.
    """
    names = [field.name for field in fields]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two fields are called {name}: each channel needs a name of its own")
    return fields
