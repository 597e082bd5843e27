"""Readers of files from elsewhere, given thousands of spoilt ones.

A case is a sound input in which something was changed at random, made anew from a seed and its number. It has to be
read as what it is, or be refused by an error of ours that names the file: within a time limit, within bounded memory,
and without the process dying, whatever libraries do beneath. By default each reader gets a few dozen cases;
``BIND_FUZZ_CASES=2000`` gives each that many, ``BIND_FUZZ_SEED`` other ones than the default, and ``BIND_FUZZ_FIRST``
begins at a later case, to see one again:

    BIND_FUZZ_SEED=7 BIND_FUZZ_FIRST=1234 BIND_FUZZ_CASES=1 python -m pytest tests/input_trust -k "spoilt and snapshot"
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from reader_cases import READERS
from sound_inputs import write_sound_inputs

FEW = {"simulation": 10, "rows": 20}
CASES = 40
"""How many a reader is given by default."""
SEED = 1993
PROGRAM = Path(__file__).with_name("reader_cases.py")
SECONDS_PER_CASE = 40
SHOWN = 5


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    write_sound_inputs(folder)
    return folder


def outcomes_of(seeds: Path, folder: Path, reader: str, seed: int, cases: range) -> list[dict]:
    """Read cases in processes of their own; one that dies of a case is followed by another, for those after it."""
    outcomes = []
    first = cases.start
    root = PROGRAM.parents[2]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(root), str(root / "tests"))),
        "TMPDIR": str(folder),
        "HDF5_USE_FILE_LOCKING": "FALSE",
        "MALLOC_ARENA_MAX": "2",  # each thread would set address space aside for a heap of its own
    }
    while first < cases.stop:
        command = [sys.executable, PROGRAM, seeds, reader, seed, first, cases.stop - first]
        done = subprocess.run(
            [str(word) for word in command],
            capture_output=True,
            text=True,
            cwd=folder,
            env=environment,
            timeout=SECONDS_PER_CASE * len(cases) + 300,
            check=False,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        outcomes += [line for line in lines if "outcome" in line]
        begun = [line["case"] for line in lines if "outcome" not in line]
        assert begun, done.stderr
        if done.returncode:
            died = {"case": begun[-1], "outcome": "wrong", "why": f"ended by {done.returncode}\n{done.stderr}"}
            outcomes.append(died)
        first = begun[-1] + 1
    return outcomes


@pytest.mark.timeout(0)
@pytest.mark.parametrize("reader", READERS)
def test_a_spoilt_input_is_refused_or_read(seeds: Path, tmp_path: Path, reader: str) -> None:
    """No spoilt input brings about another error than ours, a dead process, a hang or the memory that it claims."""
    seed = int(os.environ.get("BIND_FUZZ_SEED", SEED))
    first = int(os.environ.get("BIND_FUZZ_FIRST", "0"))
    number = int(os.environ.get("BIND_FUZZ_CASES", FEW.get(reader, CASES)))
    outcomes = outcomes_of(seeds, tmp_path, reader, seed, range(first, first + number))
    counts = Counter(outcome["outcome"] for outcome in outcomes)
    print(f"{reader}, seed {seed}, cases {first} to {first + number - 1}: {dict(counts)}")
    wrong = [outcome for outcome in outcomes if outcome["outcome"] == "wrong"]
    shown = "\n".join(f"case {outcome['case']}: {outcome['why']}" for outcome in wrong[:SHOWN])
    assert not wrong, f"seed {seed}: {len(wrong)} of {number} cases went wrong\n{shown}"
    assert [outcome["case"] for outcome in outcomes] == list(range(first, first + number))
    assert counts["refused"] or number < CASES
    assert not list(tmp_path.rglob("hacked"))
