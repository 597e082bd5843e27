"""Paint gas and stars onto a dark-matter-only box: from simulations to a trained toy network and back to a map.

Run it as a script (`make tutorial`), or cell by cell in an editor that knows `# %%`.
"""

# %% [markdown]
# # Paint a box
#
# 1. A suite of mock simulations, each run twice: with dark matter only and with gas and stars.
# 2. A data set of aligned maps around massive haloes, its normalization, and a pack of it.
# 3. A small network that learns the hydrodynamic maps from the dark-matter-only ones.
# 4. The conditions of a dark-matter-only box that nobody trained on.
# 5. The painted box, beside what the mock's hydrodynamic run holds.
#
# The network is a toy: it regresses, so it paints what is likely on average, where BIND generates one of the many
# possible maps. All that surrounds it is what the real one uses.

# %%
import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LogNorm
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from bind_core.config import DatasetConfig
from bind_core.dataset import Augmentation, SampleDataset, ShardReader
from bind_core.inference import IDENTITY, read_particles
from bind_core.maps import target_map
from bind_core.normalization import denormalize_target, normalize_input
from bind_core.painting import paste
from bind_core.snapshot import Component
from bind_core.windows import Windows
from storage.conditions import read_condition, read_condition_set
from storage.manifest import layout_at
from storage.mock_suite import write_mock_suite
from storage.shards import pack
from storage.statistics import compute_statistics, write_statistics
from storage.versions import resolve_version

parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
parser.add_argument("folder", type=Path, nargs="?", default=Path("build/tutorial"), help="for all that is made")
parser.add_argument("--quick", action="store_true", help="a coarse, barely trained version, to see that it runs")
arguments = parser.parse_args([] if "ipykernel" in sys.modules else None)

FOLDER: Path = arguments.folder.resolve()
REPOSITORY = Path(__file__).resolve().parents[1]
SIMULATIONS, PARTICLES_PER_SIDE, RESOLUTION = (4, 32, 16) if arguments.quick else (8, 80, 48)
HALOS, UNSEEN_HALOS, ROTATIONS = (4, 4, 2) if arguments.quick else (6, 16, 3)
STEPS, BATCH, WIDTH = (60, 8, 16) if arguments.quick else (300, 16, 24)
BOX_PIXELS = 8 * RESOLUTION
SEED = 1993
MIN_MASS = 2e12
CHANNELS = ("dark matter", "gas", "stars")

started = time.monotonic()
FOLDER.mkdir(parents=True, exist_ok=True)
torch.manual_seed(SEED)
torch.set_num_threads(1)  # the workers that read have other cores
mpl.use("Agg")


def say(text: str) -> None:
    """Print what was done, and when."""
    print(f"[{time.monotonic() - started:5.1f} s] {text}", flush=True)


def run(*command: object) -> None:
    """Run a program of the project, showing its command line."""
    line = [str(part) for part in command]
    say(f"$ {' '.join([Path(line[0]).name, *line[1:]])}")
    subprocess.run([sys.executable, *line] if line[0].endswith(".py") else line, check=True, stdout=subprocess.DEVNULL)


# %% [markdown]
# ## 1. Simulations
#
# On the command line: `bind-data mock suite --sims 8`. What is written has the files, names and units of CAMELS. A
# second suite, of another seed, has the box that is to be painted; its hydrodynamic run is only looked at in the end.

# %%
suite = write_mock_suite(
    FOLDER / "suite",
    simulations=SIMULATIONS,
    particles_per_side=PARTICLES_PER_SIDE,
    halos_per_simulation=HALOS,
    seed=SEED,
)
unseen = write_mock_suite(
    FOLDER / "unseen",
    simulations=1,
    particles_per_side=PARTICLES_PER_SIDE,
    halos_per_simulation=UNSEEN_HALOS,
    seed=SEED + 1,
    set_name="BOX",
)
say(f"{SIMULATIONS} pairs of simulations of 2 x {PARTICLES_PER_SIDE}^3 particles in {FOLDER / 'suite'}")

# %% [markdown]
# ## 2. A data set
#
# The batch program needs no server; `bind-data generate` makes the same samples as a Prefect flow. Run again, either
# makes only what is missing. Each simulation belongs to one split, train or test, as a whole.
#
# Settings that no flag has come from a file. This one declares how a model sees stars: most pixels have none, and by
# the default, log10(x + 1), those would lie ten decades below the others, so that a slight overshoot paints stars
# everywhere.

# %%
DATASET = FOLDER / "dataset"
SETTINGS = FOLDER / "settings.yaml"
SETTINGS.write_text("transforms: {stars: {kind: log, scale: 1.0e+8}}  # log10(x / 1e8 + 1)\n")
run(
    REPOSITORY / "process_simulations.py",
    *("--nbody_base", suite.dmo_base, "--hydro_base", suite.hydro_base, "--fof_nbody_base", suite.catalogue_base),
    *("--output_base_root", DATASET, "--resolution", RESOLUTION, "--num_rotations", ROTATIONS),
    *("--mass_threshold", MIN_MASS, "--test_frac", 0.3, "--config", SETTINGS),
)

# %% [markdown]
# The statistics of the train split (`bind-data normalize`) turn maps of mass into numbers around 0, and a pack
# (`bind-data pack`) is one array for each key instead of many small files.

# %%
layout = layout_at(DATASET)
config = DatasetConfig.from_yaml(layout.configuration_file)
statistics = compute_statistics(layout, threads=2)
write_statistics(statistics, layout.statistics_folder)
packed = pack(layout, resolve_version(layout))
reader = ShardReader(packed.folder)
train = SampleDataset(reader, split="train", augmentation=Augmentation(SEED)).normalized(statistics)
test = SampleDataset(reader, split="test").normalized(statistics)
say(f"{len(train)} samples to train on, {len(test)} to test, in {packed.folder}")


# %% [markdown]
# ## 3. A network
#
# Condition and target show the same window, so that convolutions go from one to the other. The context maps show
# wider windows, whose pixels lie elsewhere; a second branch makes a few numbers of them, which shift every feature.


# %%
class ToyNetwork(nn.Module):
    """Convolutions from the condition to the three targets, told of the surroundings by numbers."""

    def __init__(self, n_context: int, width: int) -> None:
        super().__init__()
        self.surroundings = nn.Sequential(
            nn.Conv2d(n_context, width, 4, stride=4), nn.GELU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()
        )
        self.shifts = nn.Linear(16 * width, width)
        self.first = nn.Conv2d(1, width, 5, padding=2)
        self.others = nn.ModuleList(nn.Conv2d(width, width, 3, padding=reach, dilation=reach) for reach in (1, 2, 4, 1))
        self.last = nn.Conv2d(width, len(CHANNELS), 1)

    def forward(self, condition: torch.Tensor, large_scale: torch.Tensor) -> torch.Tensor:
        """Return targets (batch, 3, npix, npix) for conditions (batch, npix, npix) and context maps."""
        shift = self.shifts(self.surroundings(large_scale))[:, :, None, None]
        features = functional.gelu(self.first(condition[:, None]) + shift)
        for layer in self.others:
            features = features + functional.gelu(layer(features))
        targets: torch.Tensor = self.last(features)
        return targets


def loader_of(samples: SampleDataset, **how: Any) -> DataLoader[Any]:
    """Return a loader. Samples are a map-style data set by what they do, without torch's base class."""
    return DataLoader(cast("Dataset[Any]", samples), **how)


def batches(loader: DataLoader[Any], steps: int) -> Iterator[dict[str, torch.Tensor]]:
    """Go through a loader, again and again, for a number of steps."""
    while True:
        for batch in loader:
            if steps == 0:
                return
            steps -= 1
            yield batch


@torch.no_grad()
def error_on(samples: SampleDataset) -> float:
    """Return the mean squared error of the network, in normalized units."""
    squares = [
        functional.mse_loss(network(batch["condition"], batch["large_scale"]), batch["target"], reduction="sum")
        for batch in loader_of(samples, batch_size=32)
    ]
    return float(sum(squares) / (len(samples) * len(CHANNELS) * RESOLUTION**2))


network = ToyNetwork(len(config.windows.context_sizes), WIDTH)
optimizer = torch.optim.Adam(network.parameters())
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=STEPS)
loader = loader_of(
    train,
    batch_size=BATCH,
    shuffle=True,
    drop_last=True,
    num_workers=2,
    persistent_workers=True,
    generator=torch.Generator().manual_seed(SEED),
)
losses, test_losses = [], [(0, error_on(test))]
for step, batch in enumerate(batches(loader, STEPS), start=1):
    loss = functional.mse_loss(network(batch["condition"], batch["large_scale"]), batch["target"])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    losses.append(loss.item())
    if step % (STEPS // 6) == 0:
        test_losses.append((step, error_on(test)))
        say(f"step {step} of {STEPS}: test error {test_losses[-1][1]:.3f}")

# %% [markdown]
# The trivial prediction is the mean map of the train split: what is there around a halo, whichever it is.

# %%
untouched = SampleDataset(reader, split="train").normalized(statistics)
targets = np.stack([untouched[index]["target"] for index in range(len(untouched))])
mean_map = targets.mean(axis=0)
trivial = float(np.mean([np.mean((test[index]["target"] - mean_map) ** 2) for index in range(len(test))]))
say(f"test error: network {test_losses[-1][1]:.3f}, mean map of the train split {trivial:.3f}")

figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
axes.plot(np.arange(1, STEPS + 1), losses, color="0.7", linewidth=0.8, label="train, each batch")
axes.plot(*zip(*test_losses, strict=True), "o-", color="C0", markersize=4, label="test split")
axes.axhline(trivial, color="C1", linestyle="--", label="mean map of the train split, on the test split")
axes.set(xlabel="step", ylabel="mean squared error (normalized units)", yscale="log", xlim=(0, STEPS))
axes.set_title("Training the toy network")
axes.legend(frameon=False)
figure.savefig(FOLDER / "loss.png", dpi=120)
plt.close(figure)

# %% [markdown]
# ## A sample of the test split
#
# What the network gives is turned back into mass by the exact inverse of the normalization. Behind a logarithm, a small
# overshoot is a large mass, so that nothing is painted fainter or brighter than the train split has it. Maps have x on
# their first axis, hence the transposition; node i lies at i times the spacing, the halo on the node in the middle.

# %%
NATIVE = config.windows
SURFACE_DENSITY = r"$\Sigma$  [$h\,\mathrm{M}_\odot\,\mathrm{Mpc}^{-2}$]"
COLOURS: dict[str, Colormap] = {
    "dark matter": mpl.colormaps["magma"],
    "gas": mpl.colormaps["viridis"],
    "stars": mpl.colormaps["cividis"],
}


def scale_of(density: NDArray, decades: float = 3.0) -> LogNorm:
    """Return a logarithmic scale that ends at the brightest pixel but a few."""
    brightest = np.nanpercentile(density[density > 0], 99.9)
    return LogNorm(brightest / 10**decades, brightest)


def show(axes: Axes, density: NDArray, side: float, corner: float, scale: LogNorm, colours: Colormap | str) -> Any:
    """Draw a map whose node 0 lies at `corner`, x to the right and y up; NaN is left open, 0 is the darkest."""
    half = 0.5 * side / len(density)
    extent = (corner - half, corner + side - half) * 2
    shown = np.where(np.isnan(density), np.nan, np.maximum(density, scale.vmin or 0))
    return axes.imshow(shown.T, origin="lower", extent=extent, norm=scale, cmap=colours, interpolation="nearest")


@torch.no_grad()
def painted(condition: NDArray, large_scale: NDArray) -> NDArray[np.float32]:
    """Return the targets, in Msun/h per native pixel, for the maps of a dark-matter-only run."""
    seen = normalize_input(condition, large_scale, statistics, config.digest)
    output = network(*(torch.from_numpy(maps)[None] for maps in seen))[0].numpy()
    within = np.clip(
        output, targets.min(axis=(0, 2, 3), keepdims=True)[0], targets.max(axis=(0, 2, 3), keepdims=True)[0]
    )
    return denormalize_target(within, statistics, config.digest)


heaviest = int(np.argmax(test.rows["halo_mass"].to_numpy()))
sample = SampleDataset(reader, split="test")[heaviest]
guess = painted(sample["condition"], sample["large_scale"])
pixel_area = NATIVE.pixel_size**2
figure, grid = plt.subplots(2, 4, figsize=(15, 6.4), layout="constrained")
dark_scale = scale_of(sample["condition"] / pixel_area)
context_scale = scale_of(sample["large_scale"][-1] / pixel_area, 2)
wide = NATIVE.context_sizes[-1]
for axes, values, side, scale, title in (
    (grid[0, 0], sample["condition"], NATIVE.native_size, dark_scale, "condition: dark matter only"),
    (grid[1, 0], sample["large_scale"][-1], wide, context_scale, f"context: {wide:g} Mpc/h"),
):
    image = show(axes, values / pixel_area, side, -side / 2, scale, COLOURS["dark matter"])
    axes.set_title(title)
    figure.colorbar(image, ax=axes, shrink=0.85, label=SURFACE_DENSITY)
for column, name in enumerate(CHANNELS, start=1):
    scale = scale_of(sample["target"][column - 1] / pixel_area)
    for axes, values, what in ((grid[0, column], sample["target"], "truth"), (grid[1, column], guess, "network")):
        density = values[column - 1] / pixel_area
        image = show(axes, density, NATIVE.native_size, -NATIVE.native_size / 2, scale, COLOURS[name])
        axes.set_title(f"{name}: {what}")
    figure.colorbar(image, ax=grid[:, column], shrink=0.8, label=SURFACE_DENSITY)
for axes in grid.flat:
    axes.set(xlabel="x' [Mpc/h]", ylabel="y' [Mpc/h]" if axes in grid[:, 0] else "")
figure.suptitle(
    f"{test.rows['sample_id'][heaviest]}, of the test split: "
    rf"$M_{{200c}}$ = {sample['halo_mass'] / 1e13:.1f} $\times\,10^{{13}}\,\mathrm{{M}}_\odot/h$"
)
figure.savefig(FOLDER / "sample.png", dpi=110)
plt.close(figure)
say(f"loss.png and sample.png in {FOLDER}")

# %% [markdown]
# ## 4. Conditions of a dark-matter-only box
#
# The command gets the folders of a dark-matter-only run and its catalogue, and the data set whose windows to use. It
# makes the maps by the functions that made the training set, with the identity as orientation.

# %%
CONDITIONS = FOLDER / "conditions.zarr"
run(
    Path(sys.executable).with_name("bind-data"),
    *("conditions", "BOX_0", "--dataset", DATASET, "--set", "BOX", "--zarr", "--output", CONDITIONS),
    *("--dmo-base", unseen.dmo_base, "--catalogue-base", unseen.catalogue_base),
)
conditions = read_condition_set(CONDITIONS)
say(f"conditions of {len(conditions.halos)} haloes in {CONDITIONS}")

# %% [markdown]
# ## 5. The painted box
#
# `paste` adds a patch's mass where it belongs, also across the faces of the box. Patches overlap, and each shows
# everything along its line of sight: mass must not count twice. So each patch is pasted with weights that fall towards
# its rim, the weights are pasted too, and their quotient is the weighted mean of what patches say of a pixel.

# %%
box = conditions.box_size
rim = np.hanning(RESOLUTION + 2)[1:-1]
weight = np.outer(rim, rim)
paint = np.zeros((len(CHANNELS), BOX_PIXELS, BOX_PIXELS))
weights = np.zeros((BOX_PIXELS, BOX_PIXELS))
centers, masses = [], []
for halo in conditions.halos:
    arrays, place = read_condition(CONDITIONS, halo)
    patch = painted(arrays["condition"], arrays["large_scale"])
    for canvas, values in zip(paint, patch, strict=True):
        paste(canvas, values * weight, place)
    paste(weights, weight, place)
    centers.append(place.center)
    masses.append(patch.sum(axis=(1, 2), dtype=float))
covered = weights > 0
paint[:, covered] /= weights[covered] * pixel_area
paint[:, ~covered] = np.nan
np.savez(FOLDER / "painted_box.npz", surface_density=paint, channels=CHANNELS, box_size=box)

# %% [markdown]
# Dark matter and gas come out right to some twenty per cent. Stars do not: they lie where they belong, but there are
# two to three times too many, since few pixels have any (with the default transform, it was nineteen times). That is
# what a generative model is for.
#
# The truth is projected by the function that makes targets, with a window as wide as the box: its node i lies at i
# times the spacing, as on the canvas.

# %%
truth_config = config.model_copy(update={"dmo_base": unseen.dmo_base, "hydro_base": unseen.hydro_base})
WHOLE_BOX = Windows(native_size=box, context_sizes=(), depth=box, resolution=BOX_PIXELS)
dmo_files = sorted(unseen.dmo_base.rglob("*.hdf5"))
hydro_files = sorted(unseen.hydro_base.rglob("*.hdf5"))
meshes = {"dark matter only": read_particles(Component.DMO, dmo_files, truth_config)}
components = {"dark matter": Component.DARK_MATTER, "gas": Component.GAS, "stars": Component.STARS}
meshes |= {name: read_particles(part, hydro_files, truth_config) for name, part in components.items()}
box_area = (box / BOX_PIXELS) ** 2
truth = {
    name: target_map(mesh, np.full(3, box / 2), IDENTITY, WHOLE_BOX, config.backend) / box_area
    for name, mesh in meshes.items()
}
true_masses = [
    [
        target_map(meshes[name], center, IDENTITY, NATIVE.native_only, config.backend).sum(dtype=float)
        for name in CHANNELS
    ]
    for center in centers
]

# %%
figure, grid = plt.subplots(2, 3, figsize=(16.5, 10.2), layout="constrained")
dark_scale = scale_of(truth["dark matter only"], 2.5)
for row, name in enumerate(("gas", "stars")):
    values = np.where(covered, truth[name], np.nan)
    scale = scale_of(values[covered])
    panels = ((grid[row, 1], paint[CHANNELS.index(name)], "painted"), (grid[row, 2], values, "hydrodynamic run"))
    for axes, density, what in panels:
        show(axes, truth["dark matter only"], box, 0, dark_scale, "gray")
        image = show(axes, density, box, 0, scale, COLOURS[name])
        axes.set_title(f"{name}: {what}, over the dark matter")
    figure.colorbar(image, ax=grid[row, 1:], shrink=0.85, label=f"{name}, {SURFACE_DENSITY}")
image = show(grid[0, 0], truth["dark matter only"], box, 0, dark_scale, COLOURS["dark matter"])
grid[0, 0].plot(*np.array(centers)[:, :2].T, "o", markersize=9, markerfacecolor="none", color="white", label="haloes")
grid[0, 0].legend(loc="upper right", labelcolor="white", facecolor="black", framealpha=0.6)
grid[0, 0].set_title("the dark-matter-only run")
figure.colorbar(image, ax=grid[0, 0], shrink=0.85, label=SURFACE_DENSITY)
for axes in (grid[0, 0], *grid[:, 1], *grid[:, 2]):
    axes.set(xlabel="x [Mpc/h]", ylabel="" if axes in grid[:, 2] else "y [Mpc/h]", xlim=(0, box), ylim=(0, box))
for channel, (name, marker) in enumerate(zip(CHANNELS, "osD", strict=True)):
    x, y = np.array(true_masses)[:, channel], np.array(masses)[:, channel]
    grid[1, 0].plot(x, y, marker, markersize=5, alpha=0.8, color=COLOURS[name](0.6), label=name)
positive = np.array([true_masses, masses])
positive = positive[positive > positive.max() / 1e5]
limits = (positive.min() / 3, positive.max() * 2)
grid[1, 0].plot(limits, limits, color="0.5", linewidth=1, zorder=0)
grid[1, 0].set(xscale="log", yscale="log", xlim=limits, ylim=limits, aspect="equal")
grid[1, 0].set(xlabel="mass in the hydrodynamic run [Msun/h]", ylabel="painted mass [Msun/h]")
grid[1, 0].set_title("mass in the window of each halo")
grid[1, 0].legend(frameon=False, loc="lower right")
figure.suptitle(f"BOX_0: {len(centers)} haloes painted by a network that never saw this simulation")
figure.savefig(FOLDER / "painted_box.png", dpi=100)
plt.close(figure)
for name, of_channel, of_truth in zip(CHANNELS, np.sum(masses, axis=0), np.sum(true_masses, axis=0), strict=True):
    say(f"{name}: {of_channel:.3g} Msun/h painted in all windows, {of_truth:.3g} in the hydrodynamic run")
say(f"painted_box.png and painted_box.npz in {FOLDER}. Done.")
