"""Which samples the contact sheets show."""

import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from storage import gallery
from storage.gallery import UnknownSampleError, find_sample, sheet_is_current, sheet_of_dataset, sheet_of_sample

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the titles of the samples that the data set's sheet was drawn of."""
    titles: list[str] = []

    def draw(entries: Any, *others: Any) -> bytes:
        titles.extend(entry.title for entry in entries)
        return PNG

    monkeypatch.setattr(gallery, "dataset_contact_sheet", draw)
    return titles


def commit(dataset: Any, masses: dict[str, list[float]]) -> None:
    """Commit two rotations of each halo, with these masses by simulation."""
    manifest = dataset.open()
    for simulation, of_halos in masses.items():
        rows = dataset.sample_rows(simulation, halos=len(of_halos), rotations=2)
        by_halo = pl.Series("halo_mass", [of_halos[halo] for halo in rows["halo"]], pl.Float64)
        manifest.commit(rows.with_columns(by_halo), dataset.simulation_rows(simulation), "run")


def first_words(titles: list[str]) -> list[str]:
    return [title.replace("\n", " ").split()[0] for title in titles]


def test_the_heaviest_haloes_of_different_simulations_are_shown(dataset: Any, shown: list[str]) -> None:
    """With many simulations, each picture is of another one: those with the heaviest haloes, heaviest first."""
    heaviest = {"SB35_0": 4e13, "SB35_1": 9e13, "SB35_2": 5e13, "SB35_3": 6e13, "SB35_10": 7e13}
    commit(dataset, {name: [2e13, mass, 0.99 * mass] for name, mass in heaviest.items()})
    assert sheet_of_dataset(dataset.layout, dataset.config) == PNG
    assert first_words(shown) == ["SB35_1", "SB35_10", "SB35_3", "SB35_2"]


def test_few_simulations_show_their_next_haloes(dataset: Any, shown: list[str]) -> None:
    """Where simulations run out, the second halo of each follows, never another rotation of one already shown."""
    commit(dataset, {"SB35_0": [3e13, 5e13], "SB35_1": [4e13]})
    sheet_of_dataset(dataset.layout, dataset.config)
    assert first_words(shown) == ["SB35_0", "SB35_1", "SB35_0"]
    assert len(set(shown)) == 3


def test_no_sample_is_no_sheet(dataset: Any) -> None:
    """A data set without samples has no contact sheet, and that is no error."""
    dataset.open().commit(None, dataset.simulation_rows("SB35_0", status="blocked"), "run")
    assert sheet_of_dataset(dataset.layout, dataset.config) is None


def test_a_sheet_that_is_older_than_the_last_commit_is_not_current(dataset: Any) -> None:
    """Whether a run was killed between its last commit and its sheet, the next one can tell."""
    sheet = dataset.layout.contact_sheet_file
    dataset.commit("SB35_0")
    assert not sheet_is_current(dataset.layout)
    sheet.write_bytes(PNG)
    assert sheet_is_current(dataset.layout)
    os.utime(sheet, (before := sheet.stat().st_mtime - 60, before))
    assert not sheet_is_current(dataset.layout)


def test_a_sample_is_found_by_any_of_its_names(dataset: Any) -> None:
    """Its id, the name of its file with or without ending, and paths to it all lead to the same sample."""
    dataset.commit("SB35_0", "SB35_1")
    path = dataset.layout.absolute("train/sim_1/sim_1_halo_0_rot_1.npz")
    names = ["SB35_1_halo_0_rot_1", path.name, path.stem, str(path), "train/sim_1/sim_1_halo_0_rot_1.npz"]
    assert {find_sample(dataset.layout, name)["sample_id"] for name in names} == {"SB35_1_halo_0_rot_1"}


@pytest.mark.parametrize("name", ["SB35_0_halo_0_rot_9", "0_rot_1", "", "/", ".*", "rot_1.npz"])
def test_an_unknown_sample_is_named_with_examples(dataset: Any, name: str) -> None:
    """A name that is no sample's is refused with examples of names that are."""
    dataset.commit("SB35_0")
    with pytest.raises(UnknownSampleError, match="SB35_0_halo_0_rot_0, SB35_0_halo_0_rot_1"):
        find_sample(dataset.layout, name)


def test_a_sheet_of_one_sample_is_a_picture(dataset: Any) -> None:
    """Asked for by its file, a sample is drawn as PNG and named by its id."""
    dataset.commit("SB35_0")
    name, picture = sheet_of_sample(dataset.layout, Path("sim_0_halo_0_rot_1.npz").name)
    assert name == "SB35_0_halo_0_rot_1"
    assert picture.startswith(PNG)
