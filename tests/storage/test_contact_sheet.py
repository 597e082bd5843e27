import dataclasses
import io
import struct
import threading
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from bind_core.windows import Windows
from storage.contact_sheet import (
    ContactSheetError,
    SheetEntry,
    contact_sheet,
    dataset_contact_sheet,
    sample_title,
    write_contact_sheet,
    write_dataset_contact_sheet,
)

WINDOWS = Windows(resolution=16)


def pixels(png: bytes) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(png))[..., :3]


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def test_a_sheet_is_a_picture_with_more_than_one_colour(make_sample) -> None:
    """The sheet of a sample is a PNG large enough to look at, and not blank."""
    png = contact_sheet(make_sample(), WINDOWS, sample_title("SB35_0", 3, 7, 2.5e13))
    assert min(size(png)) > 600
    assert len(np.unique(pixels(png).reshape(-1, 3), axis=0)) > 100


def test_the_same_sample_gives_the_same_picture(make_sample) -> None:
    """Neither the time nor earlier figures show in a sheet."""
    first = contact_sheet(make_sample(), WINDOWS)
    contact_sheet(make_sample(1), WINDOWS)
    assert contact_sheet(make_sample(), WINDOWS) == first
    assert contact_sheet(make_sample(1), WINDOWS) != first


@pytest.mark.parametrize("key", ["condition", "target", "large_scale"])
def test_every_map_shows(make_sample, key: str) -> None:
    """Changing any of the maps changes the picture."""
    sample = make_sample()
    changed = dataclasses.replace(sample, **{key: getattr(sample, key)[..., ::-1]})
    assert contact_sheet(changed, WINDOWS) != contact_sheet(sample, WINDOWS)


def test_the_first_axis_runs_to_the_right(make_sample) -> None:
    """A mass at large x' and small y' is drawn at the lower right of its panel."""
    empty = np.ones((16, 16), np.float32)
    spot = empty.copy()
    spot[14, 1] = 1e13
    without, drawn = (
        pixels(contact_sheet(dataclasses.replace(make_sample(), condition=condition), WINDOWS, "title"))
        for condition in (empty, spot)
    )
    height, width = drawn.shape[0] // 2, drawn.shape[1] // 4
    appeared = (drawn.sum(axis=2) > 2.5) & (without.sum(axis=2) < 0.1)
    y, x = np.argwhere(appeared[:height, :width]).mean(axis=0)
    assert x > 0.5 * width
    assert y > 0.6 * height


@pytest.mark.parametrize("empty", ["stars", "everything"])
def test_maps_without_mass_are_drawn(make_sample, empty: str) -> None:
    """A sample without stars, or without any mass at all, still has a sheet."""
    sample = make_sample(stars=False)
    if empty == "everything":
        sample = dataclasses.replace(
            sample, **{key: 0 * getattr(sample, key) for key in ("condition", "target", "large_scale")}
        )
    assert min(size(contact_sheet(sample, WINDOWS))) > 600
    assert min(size(dataset_contact_sheet([SheetEntry("one", sample)], WINDOWS))) > 200


@pytest.mark.parametrize("context_sizes", [(), (12.5,), (12.5, 25.0, 50.0, 100.0, 200.0)])
def test_any_number_of_context_maps_fits(make_sample, context_sizes: tuple[float, ...]) -> None:
    """Sheets are drawn for no, one and five context windows."""
    sample = make_sample()
    context = np.repeat(sample.condition[np.newaxis], len(context_sizes), axis=0)
    windows = Windows(context_sizes=context_sizes, resolution=16)
    changed = dataclasses.replace(sample, large_scale=context)
    assert min(size(contact_sheet(changed, windows))) > 400
    assert min(size(dataset_contact_sheet([SheetEntry("one", changed)], windows))) > 200


def test_a_sheet_of_samples_grows_with_them(make_sample) -> None:
    """Each further sample adds a row of the same height."""
    heights = [
        size(dataset_contact_sheet([SheetEntry(f"{i}", make_sample(i)) for i in range(n)], WINDOWS, "title"))[1]
        for n in (1, 2, 3)
    ]
    assert heights[0] < heights[1]
    assert abs((heights[2] - heights[1]) - (heights[1] - heights[0])) <= 1


def test_samples_that_do_not_fit_the_windows_are_refused(make_sample) -> None:
    """Maps of another resolution, or no samples at all, are an error with both shapes."""
    with pytest.raises(ContactSheetError, match=r"condition has shape \(16, 16\): its windows say \(32, 32\)"):
        contact_sheet(make_sample(), Windows(resolution=32))
    with pytest.raises(ContactSheetError, match="at least one"):
        dataset_contact_sheet([], WINDOWS)


def test_a_name_is_shown_and_not_interpreted(make_sample) -> None:
    """A title with mathematical markup in the simulation's name is drawn without an error."""
    title = sample_title(r"SB35_$\frac{", 0, 0, 1e13)
    assert size(contact_sheet(make_sample(), WINDOWS, title))[0] > 600


def test_sheets_can_be_drawn_by_several_threads(make_sample) -> None:
    """Drawing uses no global state: four threads draw what one draws."""
    expected = [contact_sheet(make_sample(i), WINDOWS) for i in range(2)]
    found: dict[int, bytes] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: contact_sheet(make_sample(i % 2), WINDOWS)}))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] == expected[i % 2] for i in range(4)] == [True] * 4


def test_sheets_are_written(tmp_path: Path, make_sample) -> None:
    """Files hold what the functions return, and nothing else is left in the folder."""
    write_contact_sheet(tmp_path / "one.png", make_sample(), WINDOWS, "title")
    entries = [SheetEntry("a", make_sample())]
    write_dataset_contact_sheet(tmp_path / "all.png", entries, WINDOWS, "title")
    assert (tmp_path / "one.png").read_bytes() == contact_sheet(make_sample(), WINDOWS, "title")
    assert (tmp_path / "all.png").read_bytes() == dataset_contact_sheet(entries, WINDOWS, "title")
    assert len(list(tmp_path.iterdir())) == 2
