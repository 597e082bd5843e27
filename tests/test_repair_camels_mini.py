"""Every kind of damage to a data set of real simulations is found, named and mended."""

import json
import shutil
import sys
from pathlib import Path
from subprocess import CompletedProcess, run

import h5py
import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake

from storage.columns import SAMPLES
from storage.files import sha256_of
from storage.manifest import Manifest, layout_at
from storage.tables import one_of, read_rows

CAMELS_MINI = Path(__file__).parents[2] / "shared" / "camels_mini"
COMMAND = Path(sys.executable).with_name("bind-data")

pytestmark = [
    pytest.mark.camels_mini,
    pytest.mark.mpi,
    pytest.mark.prefect,
    pytest.mark.skipif(not CAMELS_MINI.is_dir(), reason="needs the simulations in ../shared/camels_mini"),
]


def bind_data(*arguments: object) -> CompletedProcess[str]:
    return run([COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=500, check=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with a copy of the suite and a data set of it."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(CAMELS_MINI, folder / "suite")
    flags = ("--dmo-base", folder / "suite/DMO", "--hydro-base", folder / "suite/Hydro")
    catalogues = ("--catalogue-base", folder / "suite/FOF", "-o", "test_fraction=0.4")
    done = bind_data("generate", "-d", folder / "set", *flags, *catalogues, "--rotations", 2)
    assert done.returncode == 0, done.stderr
    return folder


def contents(root: Path) -> tuple[pl.DataFrame, dict[str, str]]:
    """Return what rows say of samples, whoever made them, and the digests of all files."""
    rows = Manifest(layout_at(root)).samples().drop("run_id", "created_at")
    return rows, {str(path.relative_to(root)): sha256_of(path) for path in sorted(root.glob("t*/*/*.npz"))}


def audit(root: Path) -> dict:
    done = bind_data("audit", "-d", root, "--depth", "verified", "--no-report", "--json")
    result: dict = json.loads(done.stdout)
    assert done.returncode == (0 if result["ok"] else 1)
    return result


def damaged(root: Path) -> dict[str, str]:
    """Damage a data set in seven ways; return by which code each is to be found, and what it is to name."""
    manifest = Manifest(layout_at(root))
    rows = manifest.samples()
    mine = rows.filter(simulation="SB35_0")
    (deleted, flipped, cut, lost, twice) = mine["sample_id"][:5]
    paths = [root / path for path in mine["path"][:5]]
    paths[0].unlink()
    content = bytearray(paths[1].read_bytes())
    content[len(content) // 2] ^= 1
    paths[1].write_bytes(content)
    paths[2].write_bytes(paths[2].read_bytes()[:1000])
    table = manifest.layout.samples_table
    again = read_rows(table, SAMPLES, where=one_of("sample_id", [twice]))
    DeltaTable(table).delete(f"sample_id = '{lost}'")
    write_deltalake(table, again, mode="append")
    orphan = paths[0].with_name("sim_0_halo_99999_rot_0.npz")
    shutil.copyfile(paths[4], orphan)
    simulation, split = rows.filter(pl.col("simulation") != "SB35_0").select("simulation", "split").row(0)
    other = {"train": "test", "test": "train"}[split]
    folder = simulation.replace("SB35", "sim")
    (root / other).mkdir(exist_ok=True)
    (root / split / folder).rename(root / other / folder)
    return {
        "missing_file": deleted,
        "wrong_digest": flipped,
        "wrong_size": cut,
        "unrecorded_sample": lost,
        "duplicate_sample": twice,
        "orphan": str(orphan.relative_to(root)),
        "misplaced_file": simulation,
    }


def test_damage_is_found_named_and_mended(made: Path) -> None:
    """Files deleted, flipped, cut, a row lost, one doubled, an orphan, a moved simulation: all is as before again."""
    root = made / "set"
    before = contents(root)
    assert audit(root)["ok"]
    expected = damaged(root)
    found = audit(root)
    named = {(finding["code"], finding["subject"]) for finding in found["findings"]}
    for code, subject in expected.items():
        assert any(code == kind and who.startswith(subject) for kind, who in named), (code, subject)
    done = bind_data("repair", "-d", root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert audit(root)["errors"] == 0
    after = contents(root)
    assert after[0].equals(before[0])
    assert after[1] == before[1]


@pytest.mark.parametrize("whole", [True, False])
def test_rows_that_were_labelled_anew_are_found_named_and_mended(made: Path, tmp_path: Path, whole: bool) -> None:
    """A simulation whose rows, or some of them, the manifest moves to the other split is named, and put right."""
    root = tmp_path / "set"
    shutil.copytree(made / "set", root)
    before = contents(root)
    manifest = Manifest(layout_at(root))
    simulation, split = manifest.samples().select("simulation", "split").row(0)
    other = {"train": "test", "test": "train"}[split]
    chosen = f"simulation = '{simulation}'" + ("" if whole else " AND rotation = 0")
    labelled = set(manifest.samples().filter(pl.col("simulation") == simulation)["sample_id"])
    if not whole:
        labelled = {name for name in labelled if name.endswith("_rot_0")}
    DeltaTable(manifest.layout.samples_table).update(predicate=chosen, new_values={"split": other})
    found = audit(root)
    subjects: dict[str, set[str]] = {}
    for finding in found["findings"]:
        subjects.setdefault(finding["code"], set()).add(finding["subject"])
    assert simulation in subjects["wrong_split"]
    assert subjects["wrong_path"] == labelled
    assert ("leak" in subjects) is not whole
    assert found["ok"] is False
    others = ~pl.col("sample_id").is_in(list(labelled))
    untouched = manifest.samples().filter(others)
    done = bind_data("repair", "-d", root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert audit(root)["errors"] == 0
    after = contents(root)
    assert after[0].equals(before[0])
    assert after[1] == before[1]
    assert manifest.samples().filter(others).equals(untouched)


@pytest.mark.parametrize("mend", [("generate", "--refresh"), ("repair",)])
def test_a_replaced_input_is_named_and_remade_on_request(made: Path, tmp_path: Path, mend: tuple[str, ...]) -> None:
    """A mended catalogue makes its simulation stale; a refresh is a new version, and yesterday's is still answered."""
    shutil.copytree(made, tmp_path / "copy")
    root = tmp_path / "copy/set"
    configuration = root / "dataset.yaml"
    configuration.write_text(configuration.read_text().replace(str(made), str(tmp_path / "copy")))
    with h5py.File(tmp_path / "copy/suite/FOF/SB35_2/groups_090.hdf5", "r+") as file:
        file["Group/Group_M_Crit200"][...] *= 1.01
    status = bind_data("status", "-d", root)
    assert status.returncode == 1
    assert "stale" in status.stdout and "groups_090.hdf5" in status.stdout
    yesterday = Manifest(layout_at(root)).samples()
    version = Manifest(layout_at(root)).version
    assert bind_data(*mend, "-d", root).returncode == 0
    assert bind_data("status", "-d", root).returncode == 0
    assert Manifest(layout_at(root)).samples(version).equals(yesterday)
    changed = (
        Manifest(layout_at(root))
        .samples()
        .join(yesterday, on="sample_id")
        .filter(pl.col("halo_mass") != pl.col("halo_mass_right"))
    )
    assert set(changed["simulation"]) == {"SB35_2"}
    asked = bind_data("query", "SELECT count(*) AS n FROM samples", "-d", root, "--version", version, "--json")
    assert json.loads(asked.stdout) == [{"n": yesterday.height}]
    assert audit(root)["ok"]
