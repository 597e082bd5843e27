"""The right to write to a data set, which only one run at a time has for a simulation.

A run claims the simulations that it may write, or all. Claims are kept as a log in `DatasetLayout.lease_folder`: every
change of who holds what is a new file with the next number, which only one process can create, on a network file system
too. So no two runs get the same simulation, and nobody's claim is removed by one who looked a moment too early.

An owner gives signs of life (`storage.heartbeat`). Whether it lives is told by the table of processes of its machine,
else by the lock on its file, else by its signs: an owner out of sight that has given none for `SILENCE` seconds counts
as dead. A claim of a dead owner is dropped by the next run. An owner that was taken for dead, since it was stopped or
cut off for long, learns so before it commits anything.
"""

import json
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from bind_core.errors import BindDataError
from bind_core.records import record_from_json
from bind_core.suite import natural_order
from storage.files import in_turn, write_bytes
from storage.heartbeat import Heartbeat, beating
from storage.layout import DatasetLayout
from storage.process_identity import Life, ProcessIdentity

BEAT_INTERVAL = 10.0
"""Seconds between two signs of life of an owner."""
SILENCE = 90.0
"""Seconds after which an owner that nothing else is known of counts as dead."""

_ENTRY = re.compile(r"(\d{10})\.json")
_ENTRIES_KEPT = 64
_HEARTBEAT = ".alive"
_TURN, _TURN_PATIENCE = "turn", 60.0
_STRAY_AGE = 24 * 3600.0
_POLL = 0.5
_SHOWN = 5


class DatasetHeldError(BindDataError):
    """Another run that is alive has the right to write what this one would write."""


class LeaseLostError(BindDataError):
    """A run that is about to commit, and has lost the right to: it was taken for dead."""


@dataclass(frozen=True)
class Claim:
    """What a run may write, and who it is."""

    name: str
    """Of this claim alone."""
    purpose: str
    """The command."""
    run_id: str
    owner: ProcessIdentity
    since: str
    """Time of the claim, UTC, ISO 8601."""
    simulations: tuple[str, ...] | None
    """What may be written; None for all, those included that are still to come."""

    def conflicts_with(self, other: "Claim") -> bool:
        """Whether both may write the same."""
        if self.simulations is None or other.simulations is None:
            return True
        return not set(self.simulations).isdisjoint(other.simulations)

    def in_common_with(self, other: "Claim") -> str:
        """Return in words what both may write."""
        if self.simulations is None or other.simulations is None:
            both = list(other.simulations or self.simulations or ())
        else:
            both = sorted(set(self.simulations) & set(other.simulations), key=natural_order)
        more = f" and {len(both) - _SHOWN:,} more" if len(both) > _SHOWN else ""
        return ", ".join(both[:_SHOWN]) + more if both else "all simulations"

    def __str__(self) -> str:
        return f"{self.purpose}, {self.owner}, run {self.run_id}, since {self.since}"


@dataclass(frozen=True)
class _Entry:
    """Who holds what after a change."""

    claims: tuple[Claim, ...]


class Lease:
    """The right to write that a run has got.

    Parameters
    ----------
    layout : DatasetLayout
        The data set.
    claim : Claim
        What may be written, by whom.
    """

    def __init__(self, layout: DatasetLayout, claim: Claim) -> None:
        self.layout = layout
        self.claim = claim

    def check(self) -> None:
        """Make sure that the right was not lost; called before each commit.

        Raises
        ------
        LeaseLostError
            If another run took this one for dead.
        RecordError
            If the record of who holds what is damaged.
        """
        claims = _Log(self.layout).latest()[1]
        if self.claim in claims:
            return
        takers = [claim for claim in claims if claim.conflicts_with(self.claim)]
        by = f"taken over by: {takers[0]}" if takers else f"lost: {self.layout.lease_folder} says nothing of it"
        raise LeaseLostError(
            f"This run's right to write to {self.layout.root} ({self.claim}) was {by}. A run loses it if it gives no "
            f"sign of life for {SILENCE:.0f} seconds, when it is stopped, say, or cut off from the disk. Nothing more "
            "was recorded. Run the same command again once the other one has ended: it makes what is missing then."
        )


@contextmanager
def writing(
    layout: DatasetLayout,
    purpose: str,
    run_id: str,
    simulations: Collection[str] | None = None,
    *,
    tell: Callable[[str], None] = lambda message: None,
    beat_interval: float = BEAT_INTERVAL,
    silence: float = SILENCE,
) -> Iterator[Lease]:
    """Have the right to write to a data set for as long as this context lasts.

    Parameters
    ----------
    layout : DatasetLayout
        The data set.
    purpose : str
        The command, for those who are refused.
    run_id : str
        The run.
    simulations : collection of str, optional
        Names of the simulations that may be written; all by default.
    tell : callable
        Called with what a person would want to know, if this has to wait.
    beat_interval, silence : float
        Seconds, as `BEAT_INTERVAL` and `SILENCE`; they must be the same for all runs.

    Raises
    ------
    DatasetHeldError
        If a living run has the right to write any of it; the message names it. Where the signs of life alone can tell,
        this waits for one for up to `silence`.
    RecordError
        If the record of who holds what is damaged.
    StorageFullError
        If the disk or the quota is full.
    OSError
        If the folder of leases cannot be written to.
    """
    named = None if simulations is None else tuple(sorted(simulations, key=natural_order))
    since = datetime.now(UTC).isoformat(timespec="seconds")
    claim = Claim(secrets.token_hex(8), purpose, run_id, ProcessIdentity.current(), since, named)
    with beating(_heartbeat_file(layout, claim), beat_interval):
        _take(layout, claim, tell, silence)
        _remove_strays(layout, claim)
        yield Lease(layout, claim)


def living_claims(layout: DatasetLayout) -> list[tuple[Claim, Life]]:
    """Return who has the right to write now, as far as can be told at once; nothing is changed.

    Raises
    ------
    RecordError
        If the record of who holds what is damaged.
    """
    found = [(claim, _life(layout, claim)) for claim in _Log(layout).latest()[1]]
    return [(claim, life) for claim, life in found if life is not Life.DEAD]


def _take(layout: DatasetLayout, mine: Claim, tell: Callable[[str], None], silence: float) -> None:
    watched: dict[str, Heartbeat] = {}
    while True:
        with in_turn(layout.lease_folder / _TURN, _TURN_PATIENCE):  # an array's tasks begin all at once
            if _is_taken(layout, mine, tell, silence, watched):
                return
        if watched:
            time.sleep(_POLL)


def _is_taken(
    layout: DatasetLayout,
    mine: Claim,
    tell: Callable[[str], None],
    silence: float,
    watched: dict[str, Heartbeat],
) -> bool:
    """Try to get a claim into the log; False if another one was faster, or signs of life have to be waited for."""
    log = _Log(layout)
    number, claims = log.latest()
    if mine in claims:
        return True
    given_back = {claim for claim in claims if not _heartbeat_file(layout, claim).exists()}
    in_the_way = {
        claim: _life(layout, claim) for claim in claims if claim not in given_back and claim.conflicts_with(mine)
    }
    for claim in [claim for claim, life in in_the_way.items() if life is Life.OUT_OF_SIGHT]:
        first = claim.name not in watched
        heartbeat = watched.setdefault(claim.name, Heartbeat(_heartbeat_file(layout, claim)))
        unheard = heartbeat.silence(_heartbeat_file(layout, mine))
        if unheard > silence:
            in_the_way[claim] = Life.DEAD
        elif heartbeat.was_heard:
            in_the_way[claim] = Life.ALIVE
        elif first:
            tell(
                f"Waiting for a sign of life, for up to {silence - unheard:.0f} s, of the run that holds "
                f"{layout.root}: {claim}"
            )
    for claim, life in in_the_way.items():
        if life in (Life.ALIVE, Life.STOPPED):
            raise _held(layout, mine, claim, life)
    if Life.OUT_OF_SIGHT in in_the_way.values():
        return False
    log.append(number + 1, (*(claim for claim in claims if claim not in given_back | in_the_way.keys()), mine))
    if mine not in log.latest()[1]:
        return False
    for claim in in_the_way:
        _heartbeat_file(layout, claim).unlink(missing_ok=True)
    return True


def _remove_strays(layout: DatasetLayout, mine: Claim) -> None:
    """Remove the files of owners that were killed: those without a claim and without a sign of life for long."""
    now = _heartbeat_file(layout, mine).stat().st_mtime
    claimed = {_heartbeat_file(layout, claim) for claim in _Log(layout).latest()[1]}
    for file in set(layout.lease_folder.glob("*" + _HEARTBEAT)) - claimed:
        with suppress(FileNotFoundError):
            # One that was made just now may be about to get its claim.
            if now - file.stat().st_mtime > _STRAY_AGE:
                file.unlink()


def _life(layout: DatasetLayout, claim: Claim) -> Life:
    """Return whether a claim's owner lives, unless its signs of life are needed to tell."""
    heartbeat = Heartbeat(_heartbeat_file(layout, claim))
    if not heartbeat.exists():
        return Life.DEAD
    life, locked = claim.owner.life(), heartbeat.is_locked()
    if life is not Life.OUT_OF_SIGHT:
        return Life.DEAD if locked is False else life
    if locked:
        return Life.ALIVE
    # The locks of another machine need not be seen here.
    return Life.DEAD if locked is False and claim.owner.is_of_this_machine() else Life.OUT_OF_SIGHT


def _held(layout: DatasetLayout, mine: Claim, claim: Claim, life: Life) -> DatasetHeldError:
    owner = claim.owner
    if life is Life.STOPPED:
        advice = (
            f"It is stopped, not ended: continue it (kill -CONT {owner.pid}), or end it (kill -KILL {owner.pid}) and "
            "run this again."
        )
    else:
        advice = (
            "Wait until it has ended, or end it, and run this again. Runs at the same time must make different "
            "simulations, as those of an array (process_simulations.py --share I/N) do."
        )
        if owner.life() is Life.OUT_OF_SIGHT:
            advice += f" If that machine is gone for good, remove {_heartbeat_file(layout, claim)}."
    return DatasetHeldError(
        f"Another run is writing to {layout.root}: {claim}. Both would write {mine.in_common_with(claim)}. {advice}"
    )


def _heartbeat_file(layout: DatasetLayout, claim: Claim) -> Path:
    return layout.lease_folder / f"{claim.name}{_HEARTBEAT}"


class _Log:
    """The changes of who holds what; only the latest counts."""

    def __init__(self, layout: DatasetLayout) -> None:
        self.folder = layout.lease_folder

    def latest(self) -> tuple[int, tuple[Claim, ...]]:
        """Return the number of the latest change, and who holds what since."""
        while True:
            numbers = self._numbers()
            if not numbers:
                return 0, ()
            file = self._file(numbers[-1])
            with suppress(FileNotFoundError):  # it was the latest a moment ago, and many have followed
                return numbers[-1], record_from_json(_Entry, file.read_bytes(), file).claims

    def append(self, number: int, claims: tuple[Claim, ...]) -> None:
        """Try to make a change the one with this number; whether that worked, `latest` tells.

        A number whose file was removed is no longer the latest: what is written there has no effect.
        """
        entry = json.dumps(asdict(_Entry(claims)), indent=1)
        with suppress(FileExistsError):
            write_bytes(self._file(number), entry.encode(), replace=False)
        for old in self._numbers()[:-_ENTRIES_KEPT]:
            self._file(old).unlink(missing_ok=True)

    def _numbers(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        names = (_ENTRY.fullmatch(file.name) for file in self.folder.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:010}.json"
