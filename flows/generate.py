"""The main flow: from paired simulations to a training set."""

import base64
import io
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast
from uuid import UUID

from PIL import Image
from prefect import flow, get_run_logger
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.client.schemas.objects import State
from prefect.states import Completed
from prefect.task_runners import TaskRunner
from prefect.utilities.annotations import quote
from rich.console import Console

from bind_core.config import DatasetConfig
from bind_core.errors import BindDataError
from bind_core.parameters import find_parameter_file, read_parameter_table
from bind_core.plan import BlockPlan
from flows.artifacts import leave_table
from flows.events import announce_samples
from flows.outcomes import failed
from flows.parameter_help import with_parameter_help
from flows.runners import BlockFuture, block_runner, blocks_at_once, is_done
from flows.signals import noted_signals
from storage.blocks import ScreenedSimulation
from storage.faults import Step, passing
from storage.files import remove_stale_temporaries, write_bytes
from storage.gallery import sheet_is_current, sheet_of_dataset
from storage.layout import DatasetLayout
from storage.lease import writing
from storage.manifest import Manifest, open_dataset
from storage.markdown import shown_text
from storage.preparation import prepare_root, with_absolute_paths
from storage.recording import new_run_id
from storage.replacement import staging_kept
from storage.results import SimulationResult
from storage.summary import RunSummary, summarise
from storage.workload import Workload
from tasks.block_files import BLOCK_FILE, STOP_FILE, block_folder, progress_in, results_in
from tasks.leftover_work import remove_killed_work, work_kept
from tasks.packaging import package_block
from tasks.planning import plan_run
from tasks.preflight import check_resources
from tasks.progress import RunProgress, phases_of
from tasks.projection import project_block
from tasks.recording import record_block
from tasks.selection import select_targets
from tasks.validation import validate_block

_POLL = 0.5
_GRACE = 15.0
_ARTIFACT_INTERVAL = 2.0
_ARTIFACT_PICTURE = (1600, 1600)


Value = TypeVar("Value")


class IncompleteRunError(BindDataError):
    """A run that ended, but not with every simulation complete or without work."""

    def __init__(self, summary: RunSummary) -> None:
        reasons = [
            f"{simulation.simulation} is {simulation.status.value}: {simulation.message or 'no message'}"
            for simulation in summary.unsettled
        ]
        super().__init__(summary.headline + "\n" + "\n".join(reasons))
        self.summary = summary


@dataclass
class _RunningBlock:
    """A block whose MPI job is running."""

    number: int
    screened: list[ScreenedSimulation]
    plan: BlockPlan
    folder: Path
    future: BlockFuture
    position: int = 0
    """Up to where its progress file has been read."""


@flow(name="generate-dataset", flow_run_name="generate {config.set_name}")
@with_parameter_help
def generate_dataset(
    config: DatasetConfig,
    simulations: list[str] | None = None,
    refresh: bool = False,
    remake: list[str] | None = None,
) -> RunSummary | State[RunSummary]:
    """Make every sample that the configuration asks for and that does not exist yet.

    Parameters
    ----------
    config : DatasetConfig
        What to make, from what, and how.
    simulations : list of str, optional
        Names of the simulations to consider, such as SB35_0; by default all that have a folder.
    refresh : bool
        Make samples anew that would come out differently today, because an input, a setting or the code has changed.
        What they were is kept, and earlier versions of the manifest still find it.
    remake : list of str, optional
        Ids of samples to make anew in any case, because their files are damaged: the run is a repair.

    Returns
    -------
    RunSummary
        Where each simulation stands.

    Raises
    ------
    IncompleteRunError
        If a simulation asked for is neither complete nor without work; the others have been made.
    BindDataError
        If the run cannot start: a wrong configuration, another one than the data set was made with, no parameter
        table, another run that makes the same simulations.
    """
    try:
        run = _Run(with_absolute_paths(config), simulations, refresh, remake)
        summary = run.execute()
        run.publish(summary)
        announce_samples(summary, run.layout)
    except BindDataError as error:
        return failed(error)
    if not summary.ok:
        incomplete = IncompleteRunError(summary)
        return failed(incomplete, str(incomplete))
    return Completed(message=summary.headline, data=summary)


def run_summary(
    config: DatasetConfig,
    simulations: list[str] | None = None,
    refresh: bool = False,
    remake: list[str] | None = None,
) -> RunSummary:
    """Run the flow here and return where each simulation stands, complete or not.

    Raises
    ------
    BindDataError
        If the run could not start.
    """
    try:
        return cast(RunSummary, generate_dataset(config, simulations, refresh, remake))
    except IncompleteRunError as error:
        return error.summary


@dataclass
class _Run:
    """One run of the flow."""

    config: DatasetConfig
    names: Sequence[str] | None
    refresh: bool
    remake: Sequence[str] | None
    run_id: str = field(default_factory=new_run_id)
    made: dict[str, int] = field(default_factory=dict)
    running: list[_RunningBlock] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.layout = DatasetLayout(self.config.output_root, self.config.set_name)
        self.folder = self.layout.work_folder / self.run_id
        self.console = Console(stderr=True)
        self.last_artifact = 0.0

    def execute(self) -> RunSummary:
        """Work through all blocks and say where every simulation stands."""
        manifest = open_dataset(self.layout, self.config, refresh=self.refresh)
        before = manifest.state
        workload: Workload = self._plan(manifest, self.remake or ())
        if not workload.outstanding and not manifest.is_interrupted:
            get_run_logger().info("Nothing to do: every sample asked for exists")
            return summarise(manifest, workload, self.run_id, self.made)
        passing(Step.AFTER_PLANNING)
        check_resources(self.config, manifest, workload, get_run_logger().warning)
        prepare_root(self.layout)
        tell = get_run_logger().info
        with (
            noted_signals() as self.signals,
            writing(self.layout, "bind-data generate", self.run_id, self.names, tell=tell) as lease,
        ):
            manifest = open_dataset(self.layout, self.config, lease, refresh=self.refresh)
            finished = manifest.finish_interrupted()
            if finished or manifest.state != before:  # another run has ended since it was planned
                workload = self._plan(manifest, self.remake or (), name="plan again")
            if workload.outstanding:
                replaces = self.refresh or self.remake
                with staging_kept(self.layout, self.run_id) if replaces else nullcontext():
                    self._execute(workload, manifest)
                workload = self._plan(manifest, (), name="take stock")
        return summarise(manifest, workload, self.run_id, self.made)

    def _plan(self, manifest: Manifest, remake: Sequence[str], name: str = "plan") -> Workload:
        plan = plan_run.with_options(task_run_name=name)
        return plan(self.config, _unsearched(manifest), self.names, self.refresh, _unsearched(remake))

    def _execute(self, workload: Workload, manifest: Manifest) -> None:
        table = read_parameter_table(find_parameter_file(self.config))
        artifact = create_progress_artifact(0.0, key="generation-progress", description="Samples made")
        with (
            RunProgress(workload.samples, self.console, phases_of(self.config)) as progress,
            work_kept(self.folder),
            block_runner(self.config, self.folder) as runner,
        ):
            self.progress, self.artifact = progress, cast(UUID, artifact)
            try:
                for number, block in enumerate(workload.blocks(self.config.simulations_per_block)):
                    self.signals.raise_lost()
                    screened = validate_block(number, _unsearched(block), self.config, _unsearched(table))
                    plan = select_targets(number, _unsearched(screened), self.config, self.run_id)
                    while len(self.running) >= blocks_at_once(self.config):
                        self._finish_one(manifest)
                    if plan is None:
                        self._record(number, screened, None, {}, "", manifest)
                    else:
                        self._start(number, screened, plan, runner)
                while self.running:
                    self._finish_one(manifest)
            except BaseException:
                self._stop_jobs()
                raise
        update_progress_artifact(self.artifact, progress=100.0)
        with suppress(OSError):
            self.folder.rmdir()  # blocks that failed have left something to look at
        remove_killed_work(self.layout)

    def _start(self, number: int, screened: list[ScreenedSimulation], plan: BlockPlan, runner: TaskRunner[Any]) -> None:
        folder = block_folder(self.folder, number)
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / BLOCK_FILE, plan.to_json().encode())
        delays = [self.config.retry_delay * 2**attempt for attempt in range(self.config.retries)]
        job = project_block.with_options(retries=self.config.retries, retry_delay_seconds=delays)
        future = cast(BlockFuture, runner.submit(job, {"block": number, "folder": folder}))
        self.running.append(_RunningBlock(number, screened, plan, folder, future))

    def _finish_one(self, manifest: Manifest) -> None:
        """Wait until a job has ended, showing the progress of all, and record its block."""
        while True:
            self.signals.raise_lost()
            for block in self.running:
                self._follow(block)
                if is_done(block.future):
                    self.running.remove(block)
                    results, error = _outcome_of(block)
                    self._record(block.number, block.screened, block.plan, results, error, manifest)
                    if not error:
                        shutil.rmtree(block.folder, ignore_errors=True)
                    return
            with suppress(FutureTimeoutError, TimeoutError):
                self.running[0].future.wait(timeout=_POLL)

    def _follow(self, block: _RunningBlock) -> None:
        reports, block.position = progress_in(block.folder, block.position)
        for report in reports:
            self.progress.report(report)
        now = time.monotonic()
        if now - self.last_artifact > _ARTIFACT_INTERVAL:
            self.last_artifact = now
            update_progress_artifact(self.artifact, progress=100 * self.progress.fraction)

    def _record(
        self,
        number: int,
        screened: list[ScreenedSimulation],
        plan: BlockPlan | None,
        results: dict[str, SimulationResult],
        error: str,
        manifest: Manifest,
    ) -> None:
        outcomes = package_block(
            number, self.layout, _unsearched(screened), _unsearched(plan), _unsearched(results), error
        )
        self.made |= record_block(
            number, _unsearched(manifest), self.config, _unsearched(outcomes), self.run_id, self.remake is not None
        )
        for outcome in outcomes:
            self.progress.finish_simulation(outcome.work.files.name, len(outcome.work.to_make))

    def _stop_jobs(self) -> None:
        """Have all jobs end, and wait for it as long as they may take, so that none outlives the run."""
        for folder in self.folder.glob("block_*"):  # not all need be among the running yet
            write_bytes(folder / STOP_FILE, b"")
        deadline = time.monotonic() + _GRACE
        while time.monotonic() < deadline and not all(is_done(block.future) for block in self.running):
            time.sleep(_POLL)

    def publish(self, summary: RunSummary) -> None:
        """Leave the summary and the contact sheet as artifacts, and the sheet as a file."""
        leave_table(
            [simulation.as_row() for simulation in summary.simulations],
            key="generation-summary",
            description=summary.headline,
        )
        if summary.unsettled:
            create_markdown_artifact(
                _explanation(summary),
                key="generation-problems",
                description=f"{len(summary.unsettled)} of {len(summary.simulations)} simulations need attention",
            )
        if summary.made or not sheet_is_current(self.layout):
            remove_stale_temporaries(self.layout.root)  # of a run that was killed while it wrote the sheet
            sheet = sheet_of_dataset(self.layout, self.config)
            if sheet is not None:
                write_bytes(self.layout.contact_sheet_file, sheet)
                # The page of an image artifact spells out its address, which is the picture.
                create_markdown_artifact(
                    f"![The heaviest haloes]({_inline_picture(sheet)})\n\nAlso in `{self.layout.contact_sheet_file}`",
                    key="contact-sheet",
                    description="What the heaviest haloes of the data set look like",
                )


def _unsearched(value: Value) -> Value:
    """Hand a value to a task without Prefect looking into it for futures, which takes long for many targets."""
    return cast(Value, quote(value))


def _outcome_of(block: _RunningBlock) -> tuple[dict[str, SimulationResult], str]:
    """Return what a block's job has left, and why it ended early, if it did."""
    try:
        return block.future.result(), ""
    except Exception as error:  # whatever it was, it is this block's outcome, and the others go on
        return results_in(block.folder, block.plan), f"{type(error).__name__}: {error}"


def _inline_picture(png: bytes) -> str:
    """Return a picture as the address of an image, small enough for Prefect's event stream (1.5 MB)."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.thumbnail(_ARTIFACT_PICTURE)
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()


def _explanation(summary: RunSummary) -> str:
    lines = ["## What needs attention", ""]
    for simulation in summary.unsettled:
        lines.append(f"- **{shown_text(simulation.simulation)}** is {simulation.status.value}")
        messages = [finding.message for finding in simulation.findings] or [simulation.message]
        lines += [f"    - {shown_text(message)}" for message in messages if message]
    return "\n".join(lines)
