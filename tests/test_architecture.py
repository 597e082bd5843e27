"""Imports point one way, and the lower floors stay free of what belongs above them."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("bind_core", "storage", "tasks", "flows")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for floor in FLOORS
    for path in sorted((ROOT / floor).rglob("*.py"))
}
BATCH = (
    "tasks.launchers",
    "tasks.slurm",
    "tasks.slurm_queue",
    "tasks.sbatch",
    "tasks.submitted_jobs",
    "tasks.block_files",
    "tasks.block_job",
    "tasks.rank_messages",
    "tasks.projection_job",
    "tasks.simulation_job",
    "tasks.batch",
    "tasks.read_ahead",
    "tasks.node_memory",
    "tasks.preflight",
    "tasks.shared_memory",
    "tasks.progress",
)


def tree_of(module):
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imports_of(module):
    """Return the names of all modules that a module imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            found.add(node.module)
            # `from tasks import launchers` imports a module
            found |= {f"{node.module}.{alias.name}" for alias in node.names if f"{node.module}.{alias.name}" in MODULES}
    return found


def calls_of(module):
    """Return (dotted name, node) of every call in a module."""
    return [(ast.unparse(node.func), node) for node in ast.walk(tree_of(module)) if isinstance(node, ast.Call)]


def modules_of(floor):
    return [module for module in MODULES if module.split(".")[0] == floor]


def test_all_floors_are_there():
    """The test looks at the modules it is about."""
    assert all(modules_of(floor) for floor in FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    """A module imports from its own floor and those below only: flows -> tasks -> storage -> bind_core."""
    above = FLOORS[FLOORS.index(module.split(".")[0]) + 1 :]
    outside = {"tests", "scripts", "bench", "process_simulations", "add_large_scale"}
    wrong = {name for name in imports_of(module) if name.split(".")[0] in {*above, *outside}}
    assert not wrong


def test_modules_import_each_other_in_no_circle():
    """No two modules need each other, directly or through others, even inside functions."""
    graph = {module: {name for name in imports_of(module) if name in MODULES} for module in MODULES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


def test_only_flows_and_thin_tasks_know_prefect():
    """No module of the lower floors, nor the MPI program and its launchers, imports Prefect."""
    knowing = {module for module in MODULES if any(name.split(".")[0] == "prefect" for name in imports_of(module))}
    assert all(module.split(".")[0] in ("tasks", "flows") for module in knowing)
    assert not knowing & set(BATCH)


def test_batch_run_starts_without_prefect():
    """Importing the lower floors, the MPI program and the batch entry point pulls in neither Prefect nor flows."""
    wanted = [*modules_of("bind_core"), *modules_of("storage"), *BATCH, "process_simulations"]
    program = (
        f"import sys, importlib; sys.path.insert(0, {str(ROOT)!r})\n"
        f"for name in {wanted!r}: importlib.import_module(name)\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'prefect', 'prefect_dask', 'flows', 'dask'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize("module", modules_of("bind_core"))
def test_the_science_writes_and_prints_nothing(module):
    """bind_core neither writes a file, nor prints or logs, nor seeds or draws from a global random state."""
    for name, node in calls_of(module):
        last = name.split(".")[-1]
        where = f"{module}, line {node.lineno}: {name}"
        assert name not in {"print", "sys.stdout.write", "sys.stderr.write"}, where
        assert not name.startswith(("logging.", "warnings.warn", "time.", "os.environ")), where
        assert last not in {"write_text", "write_bytes", "mkdir", "unlink", "rename", "touch", "rmtree"}, where
        assert name not in {"np.save", "np.savez", "np.savez_compressed", "np.savetxt", "os.replace"}, where
        if last in {"open", "File"}:
            modes = [argument.value for argument in node.args[1:2] if isinstance(argument, ast.Constant)]
            modes += [word.value.value for word in node.keywords if word.arg == "mode"]
            assert set(modes) <= {"r", "rb"}, where
            assert modes or last != "File", f"{where}: say that the file is read only"
        if "(" in name:
            continue  # a method of what another call, looked at by itself, returned
        if name.startswith(("np.random.", "numpy.random.")):
            assert last in {"default_rng", "SeedSequence", "RandomState", "Generator", "SFC64"}, where
            assert node.args, f"{where}: a generator without a seed"
        if name.startswith("random."):
            assert name == "random.Random" and node.args, where
    assert "logging" not in imports_of(module)


WRITES_DIRECTLY = {
    "storage.files": "it is the one way of writing",
    "storage.faults": "it fills up a disk, for tests",
    "storage.mock_formats": "inputs for demonstrations and tests, written aside and renamed as a whole",
    "storage.mock_defects": "inputs for tests, spoilt while they are aside",
    "storage.heartbeat": "a sign of life has no content that could be half written",
    "storage.tables": "the Delta library writes, and each commit is flushed",
    "storage.shards": "zarr writes into an unfinished pack, whose files are flushed and which is renamed as a whole",
    "storage.array_groups": "zarr writes, as for a pack",
    "tasks.projection": "lines of progress and of errors are appended for whoever watches",
    "flows.serving": "logs of the servers are appended to",
}
"""Modules that write otherwise than through `storage.files.atomic_write`, and why."""

WRITERS = {
    *("write_text", "touch", "savez", "savez_compressed", "mkstemp", "NamedTemporaryFile", "copyfile", "copy2"),
    *("copytree", "write_deltalake", "open_group", "open_array", "create_array"),
}


def writes_directly(module):
    """Return the calls of a module that write a file in its place."""
    found = []
    for name, node in calls_of(module):
        last = name.split(".")[-1]
        modes = [word.value for word in node.keywords if word.arg == "mode"] + node.args[:2]
        modes = {mode.value for mode in modes if isinstance(mode, ast.Constant) and isinstance(mode.value, str)}
        opened = last in {"open", "File"} and any(
            set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in modes
        )
        method = last == "write_bytes" and "." in name
        to_a_path = (
            last in {"write_parquet", "write_csv", "savefig", "save"}
            and any(
                not isinstance(argument, ast.Name)  # a stream
                for argument in node.args[:1]
            )
        )
        if opened or method or to_a_path or last in WRITERS:
            found.append(f"line {node.lineno}: {name}")
    return found


@pytest.mark.parametrize("module", [name for name in MODULES if name.split(".")[0] != "bind_core"])
def test_files_are_written_in_one_way(module):
    """All files are written through `storage.files.atomic_write`, but where there is a reason."""
    assert module in WRITES_DIRECTLY or writes_directly(module) == []
