"""The inputs of a simulation as the manifest records them, and how those of now differ from them."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from bind_core.digests import parameters_digest
from bind_core.inputs import inputs_digest
from bind_core.parameters import ParameterTable
from bind_core.suite import Role, SimulationFiles
from storage.files import sha256_of

PARAMETERS = "parameters"
"""Role of a simulation's row in the parameter table."""

_UNKNOWN = "unknown"


@dataclass(frozen=True)
class InputFile:
    """One input of a simulation."""

    role: str
    """A `Role`, or `PARAMETERS`."""
    path: str
    bytes: int | None = None
    """Size; None for the parameter table, of which one row counts only."""
    mtime: str | None = None
    """When the file was last modified, UTC; None for the parameter table."""
    digest: str | None = None
    """Of a catalogue: SHA-256 of the file. Of a snapshot: of what is read of it. Of the parameter table: of the
    simulation's row. None where it is not known."""

    def same_file(self, other: "InputFile") -> bool:
        """Whether size and time of modification are those of another description."""
        return (self.bytes, self.mtime) == (other.bytes, other.mtime)


Inputs = tuple[InputFile, ...]


def to_json(inputs: Inputs) -> str:
    """Return inputs as the JSON list that the manifest holds."""
    return json.dumps([asdict(file) for file in inputs])


def from_json(text: str) -> Inputs:
    """Return the inputs that the manifest holds as JSON; what another version has written may be nothing of use."""
    try:
        return tuple(InputFile(**values) for values in json.loads(text))
    except (TypeError, ValueError, RecursionError):
        return ()


def describe_inputs(files: SimulationFiles, table: ParameterTable | None, known: Sequence[Inputs] = ()) -> Inputs:
    """Describe the inputs of a simulation as they are now, without reading a snapshot.

    Parameters
    ----------
    files : SimulationFiles
        Where they are; files that cannot be found or looked at are left out.
    table : ParameterTable, optional
        The parameter table; if it is out of reach, the row is taken to be as `known`.
    known : sequence of Inputs
        Earlier descriptions: a file of the same size and time of modification has the same digest.
    """
    inputs = []
    for role_inputs in files.roles():
        for position, path in enumerate(role_inputs.files):
            try:
                status = path.stat()
                mtime = datetime.fromtimestamp(status.st_mtime, UTC).isoformat()
                file = InputFile(role_inputs.role.value, str(path.absolute()), status.st_size, mtime)
                earlier = (found for found in _at(known, file.role, position) if found.same_file(file))
                digest = next((found.digest for found in earlier if found.digest), None)
                if digest is None and role_inputs.role is Role.CATALOGUE:
                    digest = sha256_of(path)
            except OSError:
                continue
            inputs.append(replace(file, digest=digest))
    if table is not None:
        inputs.append(InputFile(PARAMETERS, str(table.file), digest=parameters_digest(table, files.name)))
    else:
        inputs += list(_at(known, PARAMETERS, 0))[:1]
    return tuple(inputs)


def with_snapshot_digests(inputs: Inputs, digests: Mapping[str, str]) -> Inputs:
    """Return inputs with the digests of the files that were read, by path."""
    found = {str(Path(path).absolute()): digest for path, digest in digests.items()}
    return tuple(replace(file, digest=found.get(file.path, file.digest)) for file in inputs)


def with_touched_read(
    inputs: Inputs, known: Sequence[Inputs], digest_of: Callable[[InputFile], str | None], *, unrecorded: bool
) -> Inputs:
    """Read the snapshots of which only their content tells whether they have changed.

    These are the files of the size of a recorded one and another time of modification. A file of another size has
    changed.

    Parameters
    ----------
    inputs, known : Inputs
        Of now and of earlier, as in `describe_inputs`.
    digest_of : callable
        Returns the digest of a snapshot file, or None where it cannot be read.
    unrecorded : bool
        Whether samples were made of inputs that are not among `known`, as a run leaves them that was killed between
        its two commits: then every file is read of which the content is not known.
    """
    result = []
    for position, file in _numbered(inputs):
        digest = file.digest
        sizes = {found.bytes for found in _at(known, file.role, position) if found.digest}
        if digest is None and file.bytes is not None and (unrecorded or file.bytes in sizes):
            digest = digest_of(file)
        result.append(replace(file, digest=digest))
    return tuple(result)


def complete(inputs: Inputs, recorded: Sequence[Inputs]) -> bool:
    """Whether no input is out of reach, nor some files of a role gone of those that were there before."""
    paths = _paths(inputs)
    before = _paths(recorded[0]) if recorded else {}
    roles = {PARAMETERS, *(role.value for role in Role)}
    return paths.keys() >= roles and not any(paths[role] < before.get(role, set()) for role in roles)


def _paths(inputs: Inputs) -> dict[str, set[str]]:
    return {role: {file.path for file in group} for role, group in groupby(inputs, key=lambda file: file.role)}


def digest_of_inputs(inputs: Inputs) -> str:
    """Return the one digest of all inputs, which is that of no other inputs, even where some are unknown."""
    return inputs_digest([(file.role, file.digest or f"{_UNKNOWN} {file.bytes} {file.mtime}") for file in inputs])


def differences(before: Inputs, now: Inputs) -> list[str]:
    """Say which inputs have changed, and in what."""
    lines = []
    earlier = {(file.role, position): file for position, file in _numbered(before)}
    current = {(file.role, position): file for position, file in _numbered(now)}
    for key in [*current, *(key for key in earlier if key not in current)]:
        old, new = earlier.get(key), current.get(key)
        if new is None and old is not None:
            lines.append(f"{old.role}: {old.path} is gone")
        elif old is None and new is not None:
            lines.append(f"{new.role}: {new.path} is new")
        elif old is not None and new is not None and old.digest != new.digest:
            lines.append(_difference(old, new))
    return lines


def _difference(old: InputFile, new: InputFile) -> str:
    if new.role == PARAMETERS:
        what = "has no usable row any more" if new.digest is None else "has other values in its row"
        return f"{new.role}: {new.path} {what}"
    if old.bytes != new.bytes:
        return f"{new.role}: {new.path} has {new.bytes:,} bytes, had {old.bytes:,}"
    return f"{new.role}: {new.path} has the same size and other content (modified {new.mtime}, before {old.mtime})"


def _numbered(inputs: Inputs) -> Iterable[tuple[int, InputFile]]:
    """Return each input with its position among those of its role."""
    for _, group in groupby(inputs, key=lambda file: file.role):
        yield from enumerate(group)


def _at(known: Sequence[Inputs], role: str, position: int) -> Iterable[InputFile]:
    """Return what earlier descriptions say of one input."""
    for inputs in known:
        for number, file in _numbered(inputs):
            if (file.role, number) == (role, position):
                yield file
