"""What a run makes sure of before it begins: paths that stay valid, and a root that can be written to."""

import os
from pathlib import Path

from bind_core.config import DatasetConfig
from bind_core.errors import ConfigurationError
from storage.files import StorageFullError, remove_stale_temporaries, write_bytes
from storage.layout import DatasetLayout

PATH_SETTINGS = ("dmo_base", "hydro_base", "catalogue_base", "parameter_file", "output_root")

_PROBE = ".writable"
_PROBE_BYTES = 1 << 16
"""Something, since a file without content can be made on a full disk."""


def with_absolute_paths(config: DatasetConfig) -> DatasetConfig:
    """Return a configuration that means the same in any current folder, as the recorded one must."""
    paths = {name: path.absolute() for name in PATH_SETTINGS if (path := getattr(config, name)) is not None}
    return config.model_copy(update=paths)


def prepare_root(layout: DatasetLayout) -> None:
    """Make the root of a data set, remove what killed runs left half written in it, and try to write there.

    A run that cannot keep its results had better end before it has read anything.

    Raises
    ------
    ConfigurationError
        If the folder cannot be made or written to.
    StorageFullError
        If the disk or the quota is full.
    """
    root = layout.root
    probe = root / _PROBE
    try:
        for folder in _swept_folders(layout):
            remove_stale_temporaries(folder)
        write_bytes(probe, bytes(_PROBE_BYTES))
        probe.unlink(missing_ok=True)
    except StorageFullError:
        raise
    except OSError as error:
        raise ConfigurationError(
            f"output_root: cannot write to the folder {root}: {error.strerror or error}. Give a folder that can be "
            "made and written to."
        ) from error


def _swept_folders(layout: DatasetLayout) -> list[Path]:
    """Return the root, the folders of statistics, reports, tags and the like below it, and all that runs work in.

    Folders of samples are swept when samples are written to them: there may be very many. Links are not followed.
    """
    if not layout.root.is_dir():
        return []
    deeper = (layout.work_folder, layout.import_folder, layout.tags_folder)
    work = [Path(folder) for below in deeper if not below.is_symlink() for folder, _, _ in os.walk(below)]
    return [
        layout.root,
        *sorted(entry for entry in layout.root.iterdir() if entry.is_dir() and not entry.is_symlink()),
        *work,
    ]


def is_folder(path: Path) -> bool:
    """Whether a path is a folder; unlike `Path.is_dir`, False where the folder that holds it cannot be entered."""
    return os.path.isdir(path)  # noqa: PTH112
