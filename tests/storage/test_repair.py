"""What a repair puts in order by itself, without making anything."""

from storage.repair import plan_repair, tidy


def test_half_written_samples_go_where_nothing_is_to_be_made_any_more(dataset) -> None:
    """What a killed run has left in the folder of a simulation that is complete, or has no work now, is removed."""
    dataset.commit("SB35_0")
    layout, manifest = dataset.layout, dataset.open()
    left = []
    for simulation, split in (("SB35_0", "train"), ("SB35_1", "test")):
        path = layout.sample_path(split, simulation, 5, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        left.append(path.with_name(f".{path.name}.{'0' * 16}.bind-tmp"))
        left[-1].write_bytes(b"half a sample")
    tidy(layout, manifest, plan_repair(layout, manifest, []), "repair")
    assert [path for path in left if path.exists()] == []
    assert all((dataset.root / path).is_file() for path in manifest.samples()["path"])
