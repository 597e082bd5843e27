"""The transforms that a data set declares for its channels: in ``dataset.yaml``, where normalization takes them from.

They change no sample, so that they may be edited there at any time; a run neither changes them nor ignores others.
"""

from bind_core.config import DatasetConfig
from storage.layout import DatasetLayout


def other_transforms(layout: DatasetLayout, recorded: DatasetConfig, config: DatasetConfig) -> str:
    """Return what is to be said of a run that declares other transforms than its data set; empty if it does not."""
    before, now = recorded.channel_transforms, config.channel_transforms
    changed = [
        f"  {name}: the data set has {before[name]}, this run has {transform}"
        for name, transform in now.items()
        if before.get(name, transform) != transform
    ]
    if not changed:
        return ""
    return "\n".join(
        [
            f"The data set {layout.root} declares other transforms for its channels than this run:",
            *changed,
            f"Set these back, or declare the new ones in {layout.configuration_file}, under `transforms` and "
            "`extra_fields`, for `bind-data normalize` to take them from there. No sample changes with them.",
        ]
    )


def with_transforms_of(recorded: DatasetConfig, config: DatasetConfig) -> DatasetConfig:
    """Return a configuration with the transforms that a data set declares by now, where it does."""
    declared = recorded.channel_transforms
    extra_fields = tuple(
        field.model_copy(update={"transform": declared.get(field.name, field.transform)})
        for field in config.extra_fields
    )
    return config.model_copy(update={"transforms": recorded.transforms, "extra_fields": extra_fields})
