"""The store under any order of what is done to it, and killed at any step of that: what it has promised stays true.

By default a few examples, the same ones each time. ``BIND_STATEFUL_EXAMPLES=300`` asks for so many longer ones, at
random; of one that fails, the last lines of the report say how to repeat it.
"""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import ClassVar

import polars as pl
import pytest
from batch_runs import REPOSITORY, digests, sample_rows, simulation_rows
from block_runs import layout_of
from deltalake import write_deltalake
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from store_arena import NAMES, ROOT_SEEDS, Arena, Pending, Settings, files_of
from store_ledger import Ledger
from store_processes import (
    Ended,
    commit,
    compact,
    preload_writers,
    remove_duplicates,
    repair,
    run,
    tag,
    write,
)

from bind_core.config import DatasetConfig
from bind_core.halos import read_catalogue
from bind_core.plan import predicted_samples, sample_id
from bind_core.suite import find_simulation
from storage.faults import Action, Step
from storage.files import sha256_of
from storage.manifest import Manifest, recorded_configuration
from storage.recording import new_run_id
from storage.replacement import staging_kept
from storage.versions import resolve_version

pytestmark = pytest.mark.mpi

EXAMPLES = "BIND_STATEFUL_EXAMPLES"
LONG = 30
"""Operations in an example that is asked for; there are fewer by default."""
SHORT = 14
FEW = 6
MOST_ROTATIONS = 3

WRITING = (Step.BETWEEN_WRITE_AND_FSYNC, Step.BETWEEN_FSYNC_AND_RENAME)
MAKING = (Step.AFTER_PLANNING, Step.WITHIN_READING, Step.BETWEEN_SAMPLES)
RECORDING = (Step.BETWEEN_RENAME_AND_COMMIT, Step.WITHIN_COMMIT, Step.WITHIN_COMPACTION)
REPLACING = (Step.BEFORE_REPLACEMENT, Step.WITHIN_REPLACEMENT)


def disturbed(*steps: Step) -> st.SearchStrategy[str]:
    """Draw what ends an operation at one of these steps, or where it writes a file, at one of the first passings."""
    killed = st.builds(
        "{}:{}:{}".format,
        st.sampled_from((*steps, *WRITING)),
        st.sampled_from((Action.SIGKILL, Action.SIGKILL, Action.RAISE)),
        st.integers(1, 3),
    )
    full = st.builds("{}:enospc:{}".format, st.sampled_from(WRITING), st.integers(1, 8))
    return st.one_of(killed, killed, full)


def perhaps(*steps: Step) -> st.SearchStrategy[str]:
    """Draw as `disturbed` does, or that nothing happens."""
    return st.one_of(st.just(""), disturbed(*steps))


names = st.sets(st.sampled_from(NAMES), min_size=1).map(sorted)
numbers = st.integers(0, 99)


class Store(RuleBasedStateMachine):
    """A data set, and all that can be done to it."""

    examples = count()
    happened: ClassVar[Counter[tuple[str, str, str]]] = Counter()
    """How often each operation ended in which way, and at which step if a fault ended it."""

    def __init__(self, arena: Arena) -> None:
        super().__init__()
        self.arena = arena
        self.folder = arena.folder / f"example {next(self.examples)}"
        self.suite, self.root = self.folder / "suite", self.folder / "data set"
        shutil.copytree(arena.variants[0], self.suite)
        self.settings = Settings()
        self.variants = dict.fromkeys(NAMES, 0)
        self.clock = count(1_700_000_000, 100)
        self.pending: list[Pending] = []
        self.ledger = Ledger(layout_of(self.config))
        self.expected = self.asked_for(self.settings)
        self.sound = True
        """Whether no assertion has failed so far."""
        self.ended: Ended | None = None

    @property
    def config(self) -> DatasetConfig:
        return self.arena.config(self.suite, self.root, self.settings)

    @property
    def has_samples(self) -> bool:
        return not self.ledger.rows.is_empty()

    def asked_for(self, settings: Settings) -> dict[str, set[str]]:
        """Return the ids of the samples of each simulation that a configuration asks for."""
        config = self.arena.config(self.suite, self.root, settings)
        wanted = {}
        for name in NAMES:
            files = find_simulation(name, config)
            samples = predicted_samples(name, files.number, read_catalogue(files.catalogue.files), config)
            wanted[name] = {
                sample_id(name, halo.index, rotation)
                for stratum, halo in samples.halos
                for rotation in range(stratum.rotations)
            }
        return wanted

    def do(self, operation, *arguments: object, fault: str = "") -> Ended:
        """Do something in the other process."""
        self.sound = False
        self.ended = ended = self.arena.writer.do(operation, *arguments, fault=fault)
        if ended.disturbed:
            self.ledger.interrupted = True
        self.happened[operation.__name__, ended.how, fault.split(":")[0] if ended.disturbed else ""] += 1
        if not fault:
            assert not ended.disturbed, "it was killed, and not by us"
        assert ended.how != "raised" or (ended.disturbed and "InjectedError" in ended.answer), ended.answer
        return ended

    def unheld(self, names: list[str], refresh: bool) -> list[str]:
        """Return those of some simulations that another writer can work on: one that makes the same, or none does."""
        held = {name for one in self.pending if refresh or one.replaces for name in one.names}
        return [name for name in names if name not in held]

    # Runs

    @rule(names=names, refresh=st.booleans(), fault=perhaps(*MAKING, *RECORDING))
    def run_again(self, names: list[str], refresh: bool, fault: str) -> None:
        """Do what the next run does, on some simulations."""
        names = self.unheld(names, refresh)
        if not names:
            return
        self.expected = self.asked_for(self.settings)
        recorded = recorded_configuration(self.root)
        fits = recorded is None or recorded.digest == self.config.digest
        ended = self.do(run, self.config, names, refresh, fault=fault)
        if ended.done:
            self.ledger.interrupted = False
            assert ended.answer or not refresh
        elif not ended.disturbed:
            assert not (fits or refresh) and "ConfigurationMismatchError" in ended.answer, ended.answer

    @precondition(lambda self: self.has_samples and not self.pending)
    @rule(names=names, fault=disturbed(*RECORDING, *REPLACING, *REPLACING))
    def made_anew(self, names: list[str], fault: str) -> None:
        """Ask for other orientations than before, and end the run that makes the samples anew."""
        following = ROOT_SEEDS.index(self.settings.root_seed) + 1
        self.settings = replace(self.settings, root_seed=ROOT_SEEDS[following % len(ROOT_SEEDS)])
        self.run_again(names, True, fault)

    @rule(name=st.sampled_from(NAMES), refresh=st.booleans(), fault=perhaps(*MAKING))
    def write_samples(self, name: str, refresh: bool, fault: str) -> None:
        """Make samples that nobody has recorded yet; their writer goes on living."""
        if name not in self.unheld([name], True):
            return
        run_id, staging = new_run_id(), ExitStack()
        staging.enter_context(staging_kept(layout_of(self.config), run_id))
        ended = self.do(write, self.config, [name], run_id, refresh, fault=fault)
        if ended.done:
            self.ledger.interrupted = False
        if ended.done and ended.answer is not None:
            self.pending.append(Pending(run_id, ended.answer, self.asked_for(self.settings), staging))
        else:
            staging.close()

    @precondition(lambda self: self.pending)
    @rule(number=numbers, fault=perhaps(*RECORDING, *REPLACING))
    def commit_block(self, number: int, fault: str) -> None:
        """Record what a writer has made, unless another one has meanwhile."""
        block = self.pending.pop(number % len(self.pending))
        self.expected = block.expected
        replaced = {name for one in block.block.screened for name in one.work.replaced}
        twice = (block.made - replaced) & set(self.ledger.rows["sample_id"])
        ended = self.do(commit, self.config, block.block, block.run_id, fault=fault)
        block.staging.close()
        if ended.how == "refused" and not ended.disturbed:
            assert twice and "already" in ended.answer, ended.answer
        elif not ended.disturbed:
            assert not twice

    @precondition(lambda self: not self.pending and self.settings.rotations < MOST_ROTATIONS)
    @rule(name=st.sampled_from(NAMES))
    def another_is_faster(self, name: str) -> None:
        """Have two writers make the same further samples, and record them one after the other."""
        self.settings = replace(self.settings, rotations=self.settings.rotations + 1)
        self.write_samples(name, False, "")
        if self.pending:
            self.run_again([name], False, "")
            self.keeps_its_word()
            self.commit_block(0, "")

    @precondition(lambda self: self.pending)
    @rule(number=numbers)
    def abandon_block(self, number: int) -> None:
        """Let a writer die before it records anything."""
        self.pending.pop(number % len(self.pending)).staging.close()
        self.ledger.interrupted = True

    @precondition(lambda self: self.pending)
    @rule(number=numbers, cut=st.booleans())
    def commit_of_a_damaged_file(self, number: int, cut: bool) -> None:
        """Damage a file of which there is no row yet, and have its writer record what it has made."""
        block = self.pending[number % len(self.pending)]
        for sample in [sample for result in block.block.results.values() for sample in result.samples]:
            path = self.root / sample.file
            if path.exists() and sample.sample_id not in self.ledger.rows["sample_id"]:
                content = path.read_bytes()
                path.unlink()
                if cut:
                    self.leave(path, content[:-9])
                block.made.discard(sample.sample_id)
                break
        self.commit_block(number, "")

    # What changes around the data set

    @precondition(lambda self: not self.pending)
    @rule(seed=st.sampled_from(ROOT_SEEDS), more=st.booleans())
    def change_settings(self, seed: int, more: bool) -> None:
        """Ask for other orientations, or for more of them."""
        self.settings = Settings(seed, max(self.settings.rotations, 1 + more))

    @rule(name=st.sampled_from(NAMES), variant=st.integers(0, 1))
    def change_input(self, name: str, variant: int) -> None:
        """Replace a simulation's files by others, or by the same ones with another time."""
        if name not in self.unheld([name], True):
            return
        self.variants[name] = variant
        for file in files_of(self.arena.variants[variant], name):
            path = self.suite / file.relative_to(self.arena.variants[variant])
            shutil.copyfile(file, path)
            now = next(self.clock)
            os.utime(path, (now, now))

    # Damage, and what mends it

    @precondition(lambda self: self.has_samples)
    @rule(number=numbers, how=st.sampled_from(("cut", "changed", "deleted", "moved")))
    def damage_file(self, number: int, how: str) -> None:
        """Damage the file of a row, as a disk or a user may."""
        rows = self.ledger.rows
        name, relative = rows.select("sample_id", "path").row(number % rows.height)
        path = self.root / relative
        if not path.exists() or any(name in one.expected[one.names[0]] for one in self.pending):
            return
        content = path.read_bytes()
        self.ledger.note_damage(relative, hashlib.sha256(content).hexdigest())
        if how == "moved":
            elsewhere = self.root / "train" / "elsewhere" / path.name
            elsewhere.parent.mkdir(parents=True, exist_ok=True)
            path.replace(elsewhere)
            if relative in self.ledger.garbage:  # it was damaged before
                self.ledger.note_garbage(elsewhere)
            return
        path.unlink()  # it may have a second name, which is another file's on most disks
        if how != "deleted":
            self.leave(path, content[: len(content) // 2] if how == "cut" else content[:-1] + b"x")

    @rule(name=st.sampled_from(NAMES), kind=st.sampled_from(("before its sample", "of no sample", "temporary")))
    def orphan_appears(self, name: str, kind: str) -> None:
        """Put a file among the samples that is none, some of them where a sample will be."""
        layout = layout_of(self.config)
        split = "test" if (self.root / "test" / f"sim_{name[-1]}").exists() else "train"
        path = layout.sample_path(split, name, 0, 1 if kind == "before its sample" else 99)
        if kind == "temporary":
            path = path.with_name(f".{path.name}.{'0' * 16}.bind-tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() and name in self.unheld([name], True):
            self.leave(path, b"no sample")

    def leave(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        self.ledger.note_garbage(path)

    @precondition(lambda self: self.has_samples and not self.pending)
    @rule(number=numbers, other=st.booleans())
    def rows_are_doubled(self, number: int, other: bool) -> None:
        """Add a row of a sample once more, as another tool may: the same one, or one of another file."""
        rows = self.ledger.rows
        row = rows[number % rows.height].with_columns(pl.lit("f" * 64).alias("sha256") if other else pl.col("sha256"))
        if row["sample_id"][0] not in self.ledger.doubled:
            write_deltalake(
                layout_of(self.config).samples_table, row.to_arrow(compat_level=pl.CompatLevel.oldest()), mode="append"
            )
            self.ledger.doubled.add(row["sample_id"][0])
            self.ledger.note_damage(row["path"][0], "f" * 64)

    @precondition(lambda self: self.ledger.doubled)
    @rule(fault=perhaps())
    def duplicates_removed(self, fault: str) -> None:
        """Keep one row of each sample: the one that its file is of, if there is such."""
        rows = set(self.ledger.rows.select("path", "sha256").rows())
        whole = {(path, sha256_of(self.root / path)) for path, _ in rows if (self.root / path).exists()} & rows
        if self.do(remove_duplicates, self.config, fault=fault).done:
            self.ledger.doubled.clear()
            assert whole <= set(self.ledger.manifest.samples().select("path", "sha256").rows())

    @precondition(lambda self: self.has_samples and not self.pending)
    @rule(fault=perhaps(*MAKING, *RECORDING, *REPLACING, Step.WITHIN_REPAIR))
    def repaired(self, fault: str) -> None:
        """Do what the command `repair` does, with the settings that are recorded."""
        recorded = recorded_configuration(self.root)
        assert recorded is not None
        self.expected = self.asked_for(Settings(recorded.root_seed, recorded.strata[0].rotations))
        ended = self.do(repair, self.root, fault=fault)
        if ended.done:
            self.ledger.interrupted = False
            self.ledger.doubled.clear()
            assert ended.answer == []

    # Tables and versions

    @precondition(lambda self: self.has_samples)
    @rule(simulations=st.booleans(), leftover=st.booleans(), fault=perhaps(Step.WITHIN_COMPACTION))
    def compacted(self, simulations: bool, leftover: bool, fault: str) -> None:
        """Merge a table's files, and remove an old one that a killed commit has left."""
        layout = layout_of(self.config)
        table = layout.simulations_table if simulations else layout.samples_table
        if not table.exists():
            return
        left = table / "part-00000-left.parquet"
        if leftover:
            left.write_bytes(b"half a file")
            os.utime(left, (0, 0))
        ended = self.do(compact, table, fault=fault)
        assert not ended.done or not left.exists()

    @precondition(lambda self: self.has_samples)
    @rule(fault=perhaps())
    def tagged(self, fault: str) -> None:
        """Give the latest version a name."""
        name = f"tag-{len(self.ledger.tags)}"
        ended = self.do(tag, self.config, name, fault=fault)
        if ended.done:
            self.ledger.tags[name] = ended.answer
            assert ended.answer == max(self.ledger.versions)

    @precondition(lambda self: self.ledger.tags)
    @rule(number=numbers)
    def tag_read(self, number: int) -> None:
        """Read back the version that a name was given to."""
        name = f"tag-{number % len(self.ledger.tags)}"
        version = resolve_version(layout_of(self.config), name)
        assert version.number == self.ledger.tags[name]
        self.ledger.check_version(version.number)

    @invariant()
    def keeps_its_word(self) -> None:
        """Hold everything against what was promised."""
        self.ledger.check(self.expected)
        self.sound = True

    def teardown(self) -> None:
        """Assert that an undisturbed run, and a repair, lead to what is made from nothing."""
        for one in self.pending:
            one.staging.close()
        self.pending.clear()
        try:
            if self.sound:
                self.finish()
            else:
                print(f"It failed after {self.ended}")  # which is not said of what does not happen once more
        finally:
            shutil.rmtree(self.folder)

    def finish(self) -> None:
        self.run_again(list(NAMES), True, "")
        self.keeps_its_word()
        if self.has_samples:
            self.repaired("")
            self.keeps_its_word()
        pristine = self.arena.pristine(self.settings, self.variants)
        assert sample_rows(self.root).equals(sample_rows(pristine))
        of_the_attempt = ("inputs", "n_planned")
        assert simulation_rows(self.root).drop(of_the_attempt).equals(simulation_rows(pristine).drop(of_the_attempt))
        in_place = {path: digest for path, digest in digests(self.root).items() if not path.startswith("superseded")}
        assert in_place == digests(pristine)
        self.ledger.check_cleared()
        for number in self.ledger.versions:
            self.ledger.check_version(number)
        assert not self.ledger.broken & set(self.ledger.rows.select("path", "sha256").rows())
        version = Manifest(layout_of(self.config)).version
        self.run_again(list(NAMES), True, "")
        assert Manifest(layout_of(self.config)).version == version, "there was nothing to do"


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """Return where examples are played, with processes that are forked from one that has imported everything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "tests"))))
        preload_writers()
        made = Arena(tmp_path_factory.mktemp("store"))
        yield made
        made.writer.stop()


@pytest.mark.timeout(0 if os.environ.get(EXAMPLES) else 600)
def test_the_store_keeps_its_word_in_any_order(arena: Arena) -> None:
    """Whatever is done in whichever order, and killed wherever, nothing that was promised is lost."""
    asked = os.environ.get(EXAMPLES)
    Store.happened.clear()
    run_state_machine_as_test(
        lambda: Store(arena),
        settings=settings(
            max_examples=int(asked or FEW),
            stateful_step_count=LONG if asked else SHORT,
            derandomize=not asked,
            database=None,
            deadline=None,
            print_blob=True,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )
    for what, times in sorted(Store.happened.items()):
        print(times, *what)
    assert any(how == "killed" for _, how, _ in Store.happened)
