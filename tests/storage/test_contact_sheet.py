import dataclasses
import io
import struct
import threading

import matplotlib.image
import numpy as np
import pytest

from bind_core.fields import ExtraField
from bind_core.sample import Sample
from bind_core.windows import Windows
from storage.contact_sheet import (
    SheetEntry,
    contact_sheet,
    dataset_contact_sheet,
    sample_title,
)
from storage.map_panels import ContactSheetError

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


def with_channels(sample: Sample, **channels: np.ndarray) -> Sample:
    """Return a sample with further channels."""
    target = np.stack([*sample.target, *channels.values()]).astype(np.float32)
    return dataclasses.replace(sample, target=target, target_channels=(*sample.target_channels, *channels))


def test_further_channels_are_drawn_with_their_units(make_sample) -> None:
    """A further channel widens the sheet of several samples, and its values and its unit show on both sheets."""
    plain = make_sample()
    sample = with_channels(plain, gas_velocity=plain.condition - plain.condition.mean())
    turned = with_channels(plain, gas_velocity=plain.condition.mean() - plain.condition)
    field = ExtraField(name="gas_velocity", particle_type="gas", unit="km/s")
    other = field.model_copy(update={"unit": "m/s"})

    def several(one: Sample, *fields: ExtraField) -> bytes:
        return dataset_contact_sheet([SheetEntry("one", one)], WINDOWS, fields=fields)

    drawn = several(sample, field)
    assert size(drawn)[0] > 1.1 * size(several(plain))[0]
    assert drawn not in (several(turned, field), several(sample, other))
    assert contact_sheet(sample, WINDOWS, fields=[field]) != contact_sheet(sample, WINDOWS, fields=[other])


def test_long_names_and_units_are_shown_and_not_interpreted(make_sample) -> None:
    """Text with mathematical markup, or too long for its place, leaves the maps where they are."""
    name = "a" * 48
    sample = with_channels(make_sample(), **{name: make_sample(1).condition})
    field = ExtraField(name=name, particle_type="gas", unit=r"$\frac{" + "m" * 70)
    title = sample_title("SB35_" + "0" * 100, 0, 0, 1e13, separator="\n")
    sheet = dataset_contact_sheet([SheetEntry(title, sample)], WINDOWS, fields=[field])
    plain = dataset_contact_sheet([SheetEntry("", sample)], WINDOWS, fields=[field])
    left = 262  # where the first map begins
    assert np.array_equal(pixels(sheet)[:, left:], pixels(plain)[:, left:])
    assert min(size(contact_sheet(sample, WINDOWS, title, [field]))) > 600
