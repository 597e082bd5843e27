"""Every command that writes files, killed and out of space at each of them: what was there before stays whole.

The runs that make samples, packs and imports are in `test_faults`, since they go on where they were killed. By default
some commands are killed right before each file gets its name; all of them, at both steps of a write and with a full
disk, with ``BIND_DATA_ALL_FAULTS=1``.
"""

import os
import re
from collections.abc import Callable
from itertools import count
from pathlib import Path

import fault_runs
import pytest
from fault_arena import ALL, Undisturbed
from fault_runs import Arena, finish, leftovers

from storage.faults import Action, Step

pytestmark = pytest.mark.mpi

QUICK = (fault_runs.tag, fault_runs.card, fault_runs.normalize)
SLOW = (
    fault_runs.audit,
    fault_runs.show,
    fault_runs.query,
    fault_runs.conditions,
)
STEPS = (Step.BETWEEN_WRITE_AND_FSYNC, Step.BETWEEN_FSYNC_AND_RENAME)
MOST = 40
"""Files that a command writes, at the most."""
TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{16}\.bind-tmp")

CASES = [
    (run, step, action)
    for run in (*QUICK, *SLOW)
    for step in STEPS
    for action in (Action.SIGKILL, Action.ENOSPC)
    if os.environ.get(ALL) or (run in QUICK and step is STEPS[1] and action is Action.SIGKILL)
]


def files(arena: Arena) -> dict[Path, tuple[int, int]]:
    """Return which file is in which place: another one has another number, or was written later."""
    found = {}
    for path in arena.folder.rglob("*"):
        if path.is_file():
            facts = path.stat()
            found[path] = (facts.st_ino, facts.st_mtime_ns)
    return found


@pytest.mark.parametrize(("run", "step", "action"), CASES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_what_is_not_written_leaves_what_was_there(
    run: Callable[[Arena], int], step: Step, action: Action, arena: Arena, undisturbed: Undisturbed
) -> None:
    """At each file, a command that ends leaves the one before it, or none; the last time, it succeeds."""
    undisturbed.begin(fault_runs.generated)
    for passing in count(1):
        assert passing <= MOST
        before = files(arena)
        ended = finish(run, arena, f"{step}:{action}:{passing}")
        if ended.status == 0:
            break
        left = leftovers(arena)
        if action is Action.SIGKILL:
            assert ended.status == -9, ended.said
            (target,) = [path.with_name(TEMPORARY.sub(r"\1", path.name)) for path in left if path not in before]
        else:
            assert ended.status == 1, ended.said
            assert "Traceback" not in ended.said, ended.said
            (target,) = [Path(name) for name in re.findall(r"Cannot write (\S+?): No space", ended.said)]
            assert not left
        after = files(arena)
        assert after.get(target) == before.get(target), target
    assert passing > 1, "nothing was written"
    assert finish(run, arena).status == 0
    swept = finish(fault_runs.repair, arena)
    assert swept.status == 0, swept.said
    assert not leftovers(arena)
