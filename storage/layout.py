"""Where everything of a data set lies under its root."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bind_core.errors import BindDataError
from bind_core.splits import Split
from bind_core.suite import simulation_id

# The Delta library takes a table's path for a URL: these start other parts of one, or stand for other characters.
_UNUSABLE = re.compile(r"[\[\]\\#?\x00-\x1f]|%[0-9A-Fa-f]{2}")


class LayoutError(BindDataError):
    """A name or number that no path of a data set can be made from, or a path outside the data set."""


@dataclass(frozen=True)
class DatasetLayout:
    """The paths of one data set.

    Readers in use find samples by walking ``train/`` or ``test/`` for names that contain ``halo`` and end in
    ``.npz``: nothing but samples belongs into these two folders.

    Raises
    ------
    LayoutError
        If the root's path holds characters that its tables cannot live with.
    """

    root: Path
    """Folder of the data set."""
    set_name: str
    """Set of its simulations, e.g. ``SB35``; dropped from the names of folders and files."""

    def __post_init__(self) -> None:
        found = _UNUSABLE.search(str(self.root.absolute())) or _UNUSABLE.search(str(self.root.resolve()))
        if found is not None:
            raise LayoutError(
                f"The data set cannot lie in {self.root.absolute()}: its tables cannot be read back from a path with "
                f"{found.group()!r} in it. Choose an output_root without #, ?, [, ], \\ and %-codes."
            )

    def simulation_folder(self, split: Split | str, simulation: str) -> Path:
        """Return the folder of a simulation's samples: ``<root>/train/sim_0`` for ``SB35_0``.

        Raises
        ------
        LayoutError
            If there is no such split.
        ConfigurationError
            If the name is not one of the set's, or holds characters that a path should not.
        """
        if split not in set(Split):
            raise LayoutError(f"There is no split called {split!r}: expected one of {', '.join(Split)}.")
        return self.root / str(split) / f"sim_{simulation_id(simulation, self.set_name)}"

    def sample_path(self, split: Split | str, simulation: str, halo: int, rotation: int) -> Path:
        """Return the file of a sample.

        Parameters
        ----------
        split : Split or str
            ``train`` or ``test``.
        simulation : str
            Name of the simulation, with its set's prefix.
        halo : int
            Index of the halo in its catalogue.
        rotation : int
            Number of the rotation.

        Returns
        -------
        Path
            ``<root>/<split>/sim_<id>/sim_<id>_halo_<halo>_rot_<rotation>.npz``, where the id is the simulation's
            name without its set's prefix.

        Raises
        ------
        LayoutError
            If there is no such split, or a number is negative.
        ConfigurationError
            If the name is not one of the set's, or holds characters that a path should not.
        """
        for name, number in (("halo", halo), ("rotation", rotation)):
            if number < 0:
                raise LayoutError(f"A sample of {simulation} has {name} number {number}: expected 0 or more.")
        folder = self.simulation_folder(split, simulation)
        return folder / f"{folder.name}_halo_{int(halo)}_rot_{int(rotation)}.npz"

    def own_sample_path(self, split: Split | str, simulation: str, halo: int, rotation: int) -> Path:
        """Return the file of a sample that is to be written, as `sample_path` does.

        Raises
        ------
        LayoutError
            If a folder on the way was replaced by a link out of the data set, also.
        """
        return self.absolute(self.relative(self.sample_path(split, simulation, halo, rotation)))

    @property
    def samples_table(self) -> Path:
        """Delta table with a row per sample."""
        return self.root / "manifest" / "samples"

    @property
    def simulations_table(self) -> Path:
        """Delta table with a row per simulation and attempt."""
        return self.root / "manifest" / "simulations"

    @property
    def tags_folder(self) -> Path:
        """Names that were given to versions."""
        return self.root / "manifest" / "tags"

    @property
    def configuration_file(self) -> Path:
        """The configuration that the data set was made with."""
        return self.root / "dataset.yaml"

    @property
    def work_folder(self) -> Path:
        """Plans, progress and logs of runs; safe to delete when nothing is running."""
        return self.root / ".work"

    @property
    def commit_lock(self) -> Path:
        """File that is locked by whoever commits."""
        return self.work_folder / "commit.lock"

    @property
    def lease_folder(self) -> Path:
        """Who has the right to write to the data set, or had it last."""
        return self.work_folder / "leases"

    @property
    def staging_folder(self) -> Path:
        """Samples that were made anew and wait for their rows to be committed."""
        return self.root / ".staged"

    @property
    def audit_report_file(self) -> Path:
        """Report of the latest audit."""
        return self.root / "audit" / "report.html"

    def superseded_file(self, sha256: str) -> Path:
        """Return the file that keeps what a sample was before it was made anew, by its digest."""
        return self.root / "superseded" / sha256[:2] / f"{sha256}.npz"

    @property
    def statistics_folder(self) -> Path:
        """Normalization statistics."""
        return self.root / "data"

    @property
    def packs_folder(self) -> Path:
        """Versions packed into few large files, for training."""
        return self.root / "packs"

    @property
    def import_folder(self) -> Path:
        """How samples that were imported compare with the simulations: a report, and a file for each simulation."""
        return self.root / "import"

    @property
    def contact_sheet_file(self) -> Path:
        """Picture of some of the data set's samples."""
        return self.root / "contact_sheet.png"

    def relative(self, path: Path) -> str:
        """Return a path below the root as the manifest records it: relative, with ``/`` between its parts.

        Raises
        ------
        LayoutError
            If the path is not below the root.
        """
        try:
            parts = path.relative_to(self.root).parts
        except ValueError:
            parts = ()
        if not parts or ".." in parts:
            raise LayoutError(f"{path} is not below the root of the data set, {self.root}.")
        return PurePosixPath(*parts).as_posix()

    def absolute(self, relative: str) -> Path:
        """Return the path that the manifest records as `relative`.

        Raises
        ------
        LayoutError
            If it leads out of the data set, by itself or through a symbolic link.
        """
        path = self.root / relative
        try:
            found = path.resolve()
        except (ValueError, RuntimeError, OSError) as error:  # no path at all, or links in a circle
            raise LayoutError(f"The path {relative!r} leads nowhere in {self.root}: {error}.") from error
        if not found.is_relative_to(self.root.resolve()) or PurePosixPath(relative).is_absolute():
            raise LayoutError(
                f"The path {relative!r} leads out of the data set {self.root}: to {found}. "
                "Either the manifest was tampered with, or a folder was replaced by a link to elsewhere."
            )
        return path
