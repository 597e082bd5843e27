"""The commands `card` and `pack`: what they write where, and what they say of it."""

import json
from pathlib import Path

import pytest
from command_line import MadeDataset, call, fine, on_disk, refused

pytestmark = [pytest.mark.mpi, pytest.mark.usefixtures("elsewhere")]

FILES = ["DATASET.md", "croissant.json", "samples.parquet"]


def test_card_writes_three_files(sound: MadeDataset, elsewhere: Path) -> None:
    """The three files go where asked; JSON on standard output names them, the version and what was not said."""
    answer = json.loads(fine("card", "-d", sound.root, "--output", "card", "--license", "CC0-1.0", "--json"))
    assert sorted(Path(path).name for path in on_disk(elsewhere / "card")) == FILES
    assert sorted(Path(file).name for file in answer["files"]) == FILES
    assert (answer["version"], answer["unsaid"]) == (0, ["creators", "url"])
    assert json.loads((elsewhere / "card" / "croissant.json").read_text())["license"] == "CC0-1.0"


def test_card_says_what_is_to_be_said(sound: MadeDataset) -> None:
    """What only the owner knows is asked for on standard error, by its flags; with all of it, nothing is."""
    said = ("--creator", "A. Person", "--creator", "B. Other", "--license", "CC0-1.0", "--url", "https://example.org")
    assert "--creator, --license, --url" in call("card", "-d", sound.root, "--output", "card").stderr
    assert call("card", "-d", sound.root, "--output", "card", *said).stderr == ""


def test_card_refuses_what_it_cannot_describe(sound: MadeDataset, elsewhere: Path) -> None:
    """Another folder, an unknown version and a place that cannot be written end with a message and no file."""
    (elsewhere / "file").touch()
    before = on_disk(elsewhere)
    assert "no data set in" in refused("card", "-d", str(elsewhere))
    assert "no version '9'" in refused("card", "-d", sound.root, "--output", "card", "--version", "9")
    assert "Cannot write file/card" in refused("card", "-d", sound.root, "--output", "file/card")
    assert on_disk(elsewhere) == before


def test_pack_makes_and_verifies(sound: MadeDataset, elsewhere: Path) -> None:
    """A pack goes where asked and is verified; damage ends with status 1 and its names, JSON too."""
    answer = json.loads(fine("pack", "-d", sound.root, "--output", "packed", "--where", "rotation = 1", "--json"))
    assert answer["folder"] == "packed"
    assert answer["n_samples"] == len(list(Path(sound.root).rglob("t*/sim_*/*_rot_1.npz")))
    assert "undamaged" in fine("pack", "-d", sound.root, "--verify", "packed")
    (elsewhere / "packed" / "samples.parquet").unlink()
    assert "samples.parquet is missing" in refused("pack", "-d", sound.root, "--verify", "packed")
    found = call("pack", "-d", sound.root, "--verify", "packed", "--json")
    assert (found.exit_code, json.loads(found.stdout)["ok"]) == (1, False)


def test_pack_writes_tars(sound: MadeDataset, elsewhere: Path) -> None:
    """Tar files are named for WebDataset; how many samples they hold is said."""
    assert "samples of version 0" in fine("pack", "-d", sound.root, "--output", "tars", "--tar").replace("\n", " ")
    assert [path.name for path in (elsewhere / "tars").glob("*.tar")] == ["samples-000000.tar"]


def test_pack_refuses_what_it_cannot_pack(sound: MadeDataset, elsewhere: Path) -> None:
    """Conditions that are none, folders of something else and no samples end with a message and no pack."""
    assert "cannot be used" in refused("pack", "-d", sound.root, "--output", "packed", "--where", "halo <")
    nothing = ("--output", "packed", "--where", "halo = 99")
    assert "no sample where halo = 99" in refused("pack", "-d", sound.root, *nothing)
    (elsewhere / "mine").mkdir()
    assert "is no pack" in refused("pack", "-d", sound.root, "--output", "mine")
    assert "is no pack" in refused("pack", "-d", sound.root, "--verify", "mine")
    assert not (elsewhere / "packed").exists()
