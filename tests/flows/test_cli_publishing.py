"""The command `card`: what it writes where, and what it says of it."""

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
