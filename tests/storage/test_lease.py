"""The right to write to a data set: who gets it, who is refused and why, and what becomes of that of the dead."""

import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from lease_owners import BEAT, an_owner, claims, eventually, latest_entry, moved_to_another_machine, started, stop

import storage.heartbeat as heartbeat_module
from bind_core.records import RecordError
from storage.layout import DatasetLayout
from storage.lease import DatasetHeldError, Lease, LeaseLostError, living_claims, writing
from storage.process_identity import Life


@pytest.fixture
def layout(tmp_path: Path) -> DatasetLayout:
    return DatasetLayout(tmp_path, "SB35")


def refusal(layout: DatasetLayout, *simulations: str) -> str:
    """Ask for the right to write; return why it is refused."""
    with pytest.raises(DatasetHeldError) as error, writing(layout, "bind-data import", "run-2", simulations or None):
        pass
    return str(error.value)


def granted(layout: DatasetLayout, *simulations: str) -> None:
    """Ask for the right to write, which must be given."""
    with writing(layout, "bind-data import", "run-2", simulations or None) as lease:
        lease.check()
        assert lease.claim.name in [claim["name"] for claim in claims(layout)]


def test_the_living_owner_is_named(layout: DatasetLayout) -> None:
    """Who asks for what another has is told its command, process, user, host and run, and what to do."""
    with an_owner(layout) as owner:
        said = refusal(layout)
        for words in ("bind-data generate", f"process {owner.pid} of ", os.uname().nodename, "run run-1", "--share"):
            assert words in said
        assert str(layout.root) in said
        assert "all simulations" in said
        assert [(claim.owner.pid, life) for claim, life in living_claims(layout)] == [(owner.pid, Life.ALIVE)]
        assert owner.communicate("")[0] == "gave it back\n"
    assert living_claims(layout) == []
    granted(layout)


def test_runs_of_other_simulations_have_it_too(layout: DatasetLayout) -> None:
    """Only what two runs have in common is refused, by name."""
    with an_owner(layout, *(f"SB35_{number}" for number in range(8))):
        granted(layout, "SB35_8", "SB35_80")
        assert "would write SB35_3." in refusal(layout, "SB35_3", "SB35_8")
        assert "SB35_0, SB35_1, SB35_2, SB35_3, SB35_4 and 3 more." in refusal(layout)
        with an_owner(layout, "SB35_8"):
            assert "would write SB35_8." in refusal(layout, "SB35_8", "SB35_9")
            assert len(living_claims(layout)) == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_owners_right_is_taken_over(layout: DatasetLayout, number: signal.Signals) -> None:
    """An owner that was killed is noticed at once on its machine, be its process still waited for or not."""
    with an_owner(layout) as owner:
        os.kill(owner.pid, number)
        eventually(lambda: not living_claims(layout), "its death")  # nobody has waited for it yet: it is a zombie
        granted(layout)
        assert owner.wait() == -number
        granted(layout)
        assert not list(layout.lease_folder.glob("*.alive"))


def test_a_stopped_owner_keeps_it(layout: DatasetLayout) -> None:
    """An owner that is halted may go on any time: it is named as stopped, with what to do; killed, it is dead."""
    with an_owner(layout) as owner:
        stop(owner)
        said = refusal(layout)
        assert f"kill -CONT {owner.pid}" in said
        assert f"kill -KILL {owner.pid}" in said
        assert [life for _, life in living_claims(layout)] == [Life.STOPPED]
        owner.send_signal(signal.SIGCONT)
        assert "kill -CONT" not in refusal(layout)
        stop(owner)
        owner.kill()
        owner.wait()
        granted(layout)


def test_it_is_given_back_whatever_happens(layout: DatasetLayout) -> None:
    """An exception within ends the right as well, and a second request within one process is refused like any."""
    with pytest.raises(ZeroDivisionError), writing(layout, "bind-data generate", "run-1"):
        assert f"process {os.getpid()} of" in refusal(layout)
        raise ZeroDivisionError
    granted(layout)


def test_a_process_with_the_number_of_a_dead_one_is_another(layout: DatasetLayout) -> None:
    """Process numbers come again: what counts is when the process was started."""
    with an_owner(layout):
        entry = latest_entry(layout)
        entry.write_text(entry.read_text().replace('"started": ', '"started": 1'))
        granted(layout)


def silent_at_once(layout: DatasetLayout, tell: Callable[[str], None], silence: float) -> Lease:
    with writing(layout, "bind-data repair", "run-3", tell=tell, beat_interval=BEAT, silence=silence) as lease:
        return lease


def test_of_another_machine_the_lock_tells(layout: DatasetLayout) -> None:
    """An owner on another machine is alive as long as it holds the lock on its file, however silent it is."""
    with an_owner(layout) as owner:
        moved_to_another_machine(layout)
        stop(owner)
        said = refusal(layout)
        assert "node17" in said
        assert "If that machine is gone for good, remove" in said


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process see no locks, as on a file system whose locks count on each machine by themselves."""

    def unlocked(*_: object, **__: object) -> None:
        return None

    monkeypatch.setattr(heartbeat_module, "try_lock", unlocked)


@pytest.mark.usefixtures("without_locks")
def test_of_another_machine_a_sign_of_life_tells(layout: DatasetLayout) -> None:
    """Where locks tell nothing, one sign of life is enough to be refused; one waits for it and says so."""
    told: list[str] = []
    with an_owner(layout):
        moved_to_another_machine(layout)
        with pytest.raises(DatasetHeldError, match="node17"):
            silent_at_once(layout, told.append, silence=120)
    assert len(told) == 1
    assert "Waiting for a sign of life" in told[0]
    assert "node17" in told[0]


@pytest.mark.usefixtures("without_locks")
def test_of_another_machine_silence_tells(layout: DatasetLayout) -> None:
    """Where locks tell nothing, an owner without a sign of life counts as dead, and learns so when it goes on."""
    told: list[str] = []
    with writing(layout, "bind-data generate", "run-1", beat_interval=1e6) as lost:  # as one that was stopped
        lost.check()
        moved_to_another_machine(layout)
        before = lost.claim
        lost.claim = next(claim for claim, _ in living_claims(layout))
        assert lost.claim.name == before.name
        lost.check()
        with writing(layout, "bind-data repair", "run-3", tell=told.append, silence=1.0) as taker:
            taker.check()
            with pytest.raises(LeaseLostError, match=r"taken over by: bind-data repair.*Run the same command again"):
                lost.check()
    assert len(told) <= 1  # none, where its last sign was old enough by then


def test_a_lease_that_nobody_wrote_down_is_lost(layout: DatasetLayout) -> None:
    """If the folder of leases is removed under a run, it has no right any more."""
    with writing(layout, "bind-data generate", "run-1") as lease:
        for entry in layout.lease_folder.glob("*.json"):
            entry.unlink()
        with pytest.raises(LeaseLostError, match="says nothing of it"):
            lease.check()


def test_a_damaged_record_is_named(layout: DatasetLayout) -> None:
    """Who holds what cannot be told from a damaged file: nothing is written, and the file is named."""
    granted(layout)
    entry = latest_entry(layout)
    entry.write_text("{")
    with pytest.raises(RecordError, match=entry.name), writing(layout, "bind-data generate", "run-1"):
        pass


def test_files_of_owners_that_never_got_it_go(layout: DatasetLayout) -> None:
    """A process that was killed before it had its claim leaves a file, which goes after a day."""
    layout.lease_folder.mkdir(parents=True)
    old, new = (layout.lease_folder / f"{digit * 16}.alive" for digit in "01")
    for file in (old, new):
        file.write_text("0")
    os.utime(old, (0, 0))
    granted(layout)
    assert not old.exists()
    assert new.exists()


def test_the_log_stays_short(layout: DatasetLayout) -> None:
    """Old entries and files of owners that have ended do not pile up."""
    for _ in range(80):
        granted(layout)
    assert len(list(layout.lease_folder.glob("*.json"))) <= 65
    assert not list(layout.lease_folder.glob("*.alive"))


_RACER = """
import os, random, signal, sys
from pathlib import Path
from storage.layout import DatasetLayout
from storage.lease import DatasetHeldError, writing

root, log, seed = sys.argv[1:]
layout, log = DatasetLayout(Path(root), "SB35"), os.open(log, os.O_WRONLY | os.O_APPEND)
dice = random.Random(seed)
got = 0
while got < 12:
    name = f"SB35_{dice.randrange(2)}"
    try:
        with writing(layout, "race", f"run-{seed}", dice.choice([[name], [name], ["SB35_0", "SB35_1"]])) as lease:
            for name in lease.claim.simulations:
                os.write(log, f"in {name} {os.getpid()}\\n".encode())
            if dice.random() < 0.02:
                os.kill(os.getpid(), signal.SIGKILL)
            for name in lease.claim.simulations:
                os.write(log, f"out {name} {os.getpid()}\\n".encode())
            got += 1
    except DatasetHeldError:
        pass
"""


def test_no_two_processes_have_it_at_once(layout: DatasetLayout, tmp_path: Path) -> None:
    """Of many that ask at once, again and again, some of them killed while they have it, one at a time gets it."""
    log = tmp_path / "log"
    log.touch()
    racers = [started(_RACER, layout.root, log, seed) for seed in range(5)]
    ends = [racer.wait() for racer in racers]
    assert set(ends) <= {0, -signal.SIGKILL}
    assert ends.count(0) > 1
    dead = {racer.pid for racer, end in zip(racers, ends, strict=True) if end}
    inside: dict[str, int] = {}
    for line in log.read_text().splitlines():
        word, name, pid = line.split()
        if word == "in":
            assert inside.get(name) in {None, *dead}, f"{line} while {inside[name]} was there"
            inside[name] = int(pid)
        else:
            assert inside.pop(name) == int(pid)


def test_locks_of_one_asker_do_not_mislead_another(layout: DatasetLayout) -> None:
    """While somebody looks whether an owner's file is locked, another one is not told that it is."""
    with writing(layout, "bind-data generate", "run-1"):
        (file,) = layout.lease_folder.glob("*.alive")
        copy = file.with_name("0123456789abcdef.alive")
        copy.write_bytes(file.read_bytes())
    with copy.open("r+b") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert heartbeat_module.Heartbeat(copy).is_locked() is False
