"""Data sets that are made in spite of it all: a seed says which program is disturbed, when, and which process of it."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from batch_runs import REPOSITORY, command, wait_for
from command_line import PROGRAM
from fault_runs import Arena, Content, content, leftovers
from flow_runs import Family, configuration

from bind_core.config import Stratum
from storage.mock_suite import MockSuite

PATIENCE = 300
"""Seconds after which a run counts as hanging."""
_LONGEST_PAUSE = 1.5
_MOST_KILLS = 4
_MOST_ATTEMPTS = 12
_KEPT_WORDS = 3000
_HELD = "DatasetHeldError"


class Victim(StrEnum):
    """What a signal is sent to."""

    COMMAND = "command"
    """The process that a user starts, and waits for: the program, `mpiexec` or `bind-data`."""
    RANK = "rank"
    LAUNCHER = "launcher"
    """Of MPI ranks that somebody else started: `mpiexec`, or its proxy on the node."""
    WORKER = "worker"
    """Of a Dask cluster."""
    SERVER = "server"
    """Prefect's, embedded."""
    EVERYTHING = "everything"
    """All processes at once, or for Ctrl-C and its like the group that a terminal sends it to."""


@dataclass(frozen=True)
class Program:
    """Something that a user runs, and what it starts from."""

    name: str
    arguments: tuple[str, ...] = ()
    """Of `bind-data`, or of the batch program."""
    ranks: int | None = None
    """Of the batch program, 0 without MPI; None for `bind-data`."""
    begin: "Program | None" = None
    """What has made the data set that it starts from, if there is one."""
    settings: tuple[tuple[str, object], ...] = ()
    """Which the configuration has besides."""
    makes_samples: bool = True

    def line(self, arena: Arena) -> list[str]:
        """Return the command line."""
        if not self.makes_samples:
            return [str(PROGRAM), *self.arguments, "--dataset", str(arena.root)]
        file = arena.configuration.with_name(f"{self.name.replace(' ', '_')}.yaml")
        settings = {"strata": [Stratum(rotations=6)], "test_fraction": 0, "ranks": 2} | dict(self.settings)
        file.write_text(configuration(arena.suite, arena.root, **settings).to_yaml())
        if self.ranks is None:
            return [str(PROGRAM), "generate", "--config", str(file), *self.arguments]
        return command("--config", file, *self.arguments, ranks=self.ranks)


_REFRESH = {"arguments": ("--refresh",)}
_THREADS = (("concurrent_blocks", 2), ("ranks", 1))
_DASK = (("runner", "dask"), ("dask", {"workers": 2}), ("ranks", 1))
_ANEW = (("root_seed", 7),)
PLAIN = Program("plain", ranks=0)
MPI = Program("mpi", ranks=2)
THREADS = Program("flow threads", settings=_THREADS)
PROGRAMS = (
    Program("pack", ("pack",), begin=PLAIN, makes_samples=False),  # first, for then kernels are compiled in passing
    MPI,
    Program("plain refresh", ranks=0, begin=PLAIN, settings=_ANEW, **_REFRESH),
    THREADS,
    Program("mpi refresh", ranks=2, begin=PLAIN, settings=_ANEW, **_REFRESH),
    Program("flow dask", settings=_DASK),
    PLAIN,
    Program("normalize", ("normalize",), begin=PLAIN, makes_samples=False),
    Program("flow refresh", begin=THREADS, settings=_ANEW, **_REFRESH),
    Program("pack tars", ("pack", "--tar"), begin=PLAIN, makes_samples=False),
)
"""A seed's program is the one at its remainder. The first ones are quick."""


@dataclass(frozen=True)
class Blow:
    """A signal at a random moment."""

    moment: float
    """From 0 to 1: from the start of an undisturbed run, or its first write, to its end."""
    is_late: bool
    """Whether it falls into the part that writes, as half of them do."""
    victims: tuple[Victim, ...]
    """The first of these that lives then is hit."""
    which: float
    """Of several of a kind, from 0 to 1."""
    number: signal.Signals
    """SIGSTOP is followed by SIGCONT."""
    pause: float
    """Seconds until then."""

    @classmethod
    def drawn(cls, chance: random.Random) -> "Blow":
        victims = list(Victim)
        chance.shuffle(victims)
        numbers = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP)
        return cls(
            chance.random(),
            chance.random() < 0.5,
            tuple(victims),
            chance.random(),
            chance.choices(numbers, (70, 12, 9, 9))[0],
            chance.uniform(0.05, _LONGEST_PAUSE),
        )


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    status: int
    """Negative for a signal."""
    seconds: float
    said: str
    blow: Blow | None = None
    victim: Victim | None = None
    """What was hit, if the run had not ended before."""
    at: float = 0.0

    @property
    def is_refused(self) -> bool:
        """Whether a process that outlived its run holds the data set."""
        return self.status == 1 and self.victim is None and _HELD in self.said

    def __str__(self) -> str:
        hit = f"{self.blow.number.name} to {self.victim} at {self.at:.2f} s, " if self.blow and self.victim else ""
        return f"{hit}status {self.status} after {self.seconds:.2f} s"


@dataclass
class Story:
    """What was done to a data set, and what became of it."""

    seed: int
    program: Program
    runs: list[Ended] = field(default_factory=list)
    refused: int = 0

    @property
    def hits(self) -> list[str]:
        """What was hit by which signal."""
        return [f"{run.victim} {run.blow.number.name}" for run in self.runs if run.blow and run.victim]

    def __str__(self) -> str:
        held = f" ({self.refused} times held by the run before)" if self.refused else ""
        return f"seed {self.seed}, {self.program.name}: {'; '.join(map(str, self.runs))}{held}"

    @property
    def in_full(self) -> str:
        said = [f"--- {run}\n{run.said[-_KEPT_WORDS:]}" for run in self.runs]
        return "\n".join([f"{self}\nOnce more: BIND_SOAK_SEED={self.seed} BIND_SOAK_RUNS=1", *said])


class Soak:
    """Where data sets are made, one after the other in the same place, since each holds its own path."""

    def __init__(self, home: Path, suite: MockSuite) -> None:
        self.home = home
        self.arena = Arena(home / "arena", suite, home / "config.yaml", older=home / "none")
        self._results: dict[str, Content] = {}
        self._times: dict[str, tuple[float, float]] = {}
        """Seconds until an undisturbed run's first write, and until its end."""

    def undisturbed(self, program: Program) -> Content:
        """Return what a program leads to that nothing disturbs."""
        if program.name not in self._results:
            self.begin(program)
            family, began = Family(), time.time()
            run = self.run(program, family)
            assert run.status == 0, run.said
            wait_for(lambda: not family.members(), "the end of all processes", PATIENCE)
            assert not leftovers(self.arena)
            self._results[program.name] = content(self.arena)
            self._times[program.name] = (_first_write(self.arena.root, began), run.seconds)
            shutil.copytree(self.arena.folder, self._kept(program))
        return self._results[program.name]

    def begin(self, program: Program) -> None:
        """Make the place what a program starts from."""
        if program.begin is not None:
            self.undisturbed(program.begin)
        shutil.rmtree(self.arena.folder, ignore_errors=True)
        if program.begin is None:
            self.arena.folder.mkdir()
        else:
            shutil.copytree(self._kept(program.begin), self.arena.folder)

    def disturbed(self, seed: int) -> Story:
        """Run a program until it succeeds, disturbed as often as its seed says, and compare what is there then.

        Raises
        ------
        AssertionError
            If a run fails that nothing has disturbed, or hangs; if one claims success that has not made everything; if
            anything is left half written, or a process alive. The message tells the whole story.
        """
        chance = random.Random(seed)  # noqa: S311
        program = PROGRAMS[seed % len(PROGRAMS)]
        blows = [Blow.drawn(chance) for _ in range(chance.randint(1, _MOST_KILLS))]
        expected = self.undisturbed(program)
        self.begin(program)
        story, family = Story(seed, program), Family()
        try:
            self._until_done(story, family, blows)
            wait_for(lambda: not family.members(), f"the end of {family.members()}", PATIENCE)
            found = content(self.arena)
            assert found.equals(expected), found.difference(expected)
            assert not leftovers(self.arena), f"left half written: {leftovers(self.arena)}"
        except AssertionError as error:
            raise AssertionError(f"{error}\n{story.in_full}") from error
        finally:
            _send(signal.SIGKILL, family.members())
        return story

    def _until_done(self, story: Story, family: Family, blows: list[Blow]) -> None:
        """Start a run as soon as the one before has ended, whoever else is left of it."""
        while True:
            assert len(story.runs) < _MOST_ATTEMPTS, "no end in sight"
            run = self.run(story.program, family, blows[0] if blows else None)
            story.runs.append(run)
            if run.status == 0:
                return
            if run.is_refused:
                story.refused += 1
                wait_for(lambda: not family.members(), "the end of the run before", PATIENCE)
            else:
                assert run.victim, "a run has failed that nothing had disturbed"
                assert run.blow is None or run.blow.number is not signal.SIGSTOP, "a run has failed for a pause"
                del blows[0]

    def run(self, program: Program, family: Family, blow: Blow | None = None) -> Ended:
        """Do a run and wait for its end, whatever that is."""
        said = self.home / "said.txt"
        with said.open("wb") as stream:
            began = time.monotonic()
            process = subprocess.Popen(
                program.line(self.arena),
                env=family.environment(PREFECT_HOME=self.home / "prefect"),
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        victim, at = None, 0.0
        if blow is not None:
            try:
                first_write, end = self._times[program.name]
                first = first_write if blow.is_late else 0.0
                process.wait(timeout=first + blow.moment * (end - first))
            except subprocess.TimeoutExpired:
                at = time.monotonic() - began
                victim = _strike(blow, process, family)
        try:
            process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{victim} hit at {at:.2f} s, and then it hangs: {family.members()}") from None
        text = said.read_text(encoding="utf-8", errors="replace")
        return Ended(process.returncode, time.monotonic() - began, text, blow, victim, at)

    def _kept(self, program: Program) -> Path:
        return self.home / f"kept {program.name}"


def _first_write(root: Path, began: float) -> float:
    """Return how long after the start of a run the first file was written that is there in the end."""
    return min(moment for path in root.rglob("*") if (moment := path.lstat().st_mtime - began) > 0)


def _strike(blow: Blow, process: subprocess.Popen[bytes], family: Family) -> Victim:
    """Send the signal, and return what it was sent to."""
    living: dict[Victim, list[int]] = {Victim.COMMAND: [process.pid], Victim.EVERYTHING: list(family.members())}
    for pid, line in sorted(family.members().items()):
        kind = _kind(line)
        if kind is not None and pid != process.pid:
            living.setdefault(kind, []).append(pid)
    victim = next(kind for kind in blow.victims if kind in living)
    of_the_kind = living[victim]
    if victim is not Victim.EVERYTHING:
        of_the_kind = [of_the_kind[int(blow.which * len(of_the_kind))]]
    elif blow.number in (signal.SIGINT, signal.SIGTERM):
        os.killpg(process.pid, blow.number)
        return victim
    _send(blow.number, of_the_kind)
    if blow.number is signal.SIGSTOP:
        time.sleep(blow.pause)
        _send(signal.SIGCONT, of_the_kind)
    return victim


def _kind(line: str) -> Victim | None:
    """Tell what a process is by its command line."""
    if Path(line.split()[0]).name.startswith(("mpiexec", "hydra")):
        return Victim.LAUNCHER
    words = {
        "flows.embedded_server": Victim.SERVER,
        "projection_job": Victim.RANK,
        "process_simulations.py": Victim.RANK,
        "multiprocessing.spawn": Victim.WORKER,
    }
    return next((kind for word, kind in words.items() if word in line), None)


def _send(number: signal.Signals, pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def totals(stories: Iterable[str]) -> str:
    """Return how many data sets were made by each program, as `str` tells of them, and what was hit how often."""
    programs: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    for story in stories:
        head, _, runs = story.partition(": ")
        programs[head.partition(", ")[2]] += 1
        hits.update(part.partition(" at ")[0] for part in runs.split("; ") if " at " in part)
    made = ", ".join(f"{name} {count}" for name, count in sorted(programs.items()))
    return f"data sets: {made}\nsignals: {', '.join(f'{name} {count}' for name, count in sorted(hits.items()))}"
