"""Which samples a configuration asks for, and that plans travel unchanged."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bind_core.config import DatasetConfig
from bind_core.halos import HaloCatalogue
from bind_core.plan import BlockPlan, SimulationPlan, in_blocks, predicted_samples, sample_id
from bind_core.splits import Split

MASSES = np.array([5e13, 2e12, 3e13, 1e11, 1e13])
CATALOGUE = HaloCatalogue((), np.arange(15.0).reshape(5, 3), MASSES, np.ones(5))
LOWER = {"min_mass": 1e12, "max_mass": 1e13, "rotations": 1}


def config(**settings):
    paths = dict.fromkeys(("dmo_base", "hydro_base", "catalogue_base", "output_root"), "x")
    return DatasetConfig.from_values(paths | settings)


def targets(**settings):
    return list(predicted_samples("SB35_3", 3, CATALOGUE, config(**settings)).targets())


def test_every_halo_of_every_stratum_gets_its_rotations():
    """Each halo above 1e13 has ten samples by default; a second stratum adds one for each halo in it."""
    assert [(target.halo, target.rotation) for target in targets()] == [(h, r) for h in (0, 2) for r in range(10)]
    both = targets(strata=[{"rotations": 2}, LOWER])
    assert [(target.halo, target.rotation) for target in both] == [(0, 0), (0, 1), (2, 0), (2, 1), (1, 0), (4, 0)]
    assert both[-1].stratum == "(1e+12, 1e+13]"
    assert both[-1].halo_center == (12.0, 13.0, 14.0)
    assert both[-1].halo_mass == 1e13


def test_targets_are_distinct():
    """No two samples of a simulation share an identity or a seed."""
    found = targets(strata=[{}, LOWER])
    assert len({target.sample_id for target in found}) == len({target.entropy for target in found}) == len(found)
    assert found[0].sample_id == sample_id("SB35_3", 0, 0) == "SB35_3_halo_0_rot_0"


def test_a_threshold_changes_no_sample_that_stays():
    """Lowering the threshold, or asking for more rotations, only adds samples: the others keep seed and identity."""
    few = {target.sample_id: target.entropy for target in targets(strata=[{"rotations": 3}])}
    more = {target.sample_id: target.entropy for target in targets(strata=[{"min_mass": 1e10, "rotations": 7}])}
    assert few.items() < more.items()


def test_no_massive_halo_is_no_work():
    """A simulation without massive haloes has no targets, which is no error."""
    assert targets(strata=[{"min_mass": 1e15}]) == []


def test_plans_travel_as_json_unchanged():
    """A plan read back from its JSON is equal, seeds beyond 64 bits and awkward floats included."""
    settings = {"strata": [{"rotations": 2}, LOWER], "context_sizes": [12.5], "root_seed": 2**63 - 1}
    found = tuple(targets(**settings))
    assert max(max(target.entropy) for target in found) > 2**64
    simulation = SimulationPlan("SB35_3", Split.TEST, (0.1 + 0.2, 1e-300, np.pi), found)
    plan = BlockPlan(config(**settings), "run", 4, (simulation,))
    back = BlockPlan.from_json(plan.to_json())
    assert back == plan
    matrices = [target.rotation_matrix(plan.config) for target in found]
    np.testing.assert_array_equal(matrices, [t.rotation_matrix(back.config) for t in back.simulations[0].targets])


@given(count=st.integers(0, 50), size=st.integers(1, 12))
def test_blocks_divide_the_simulations_in_order(count, size):
    """Blocks hold every simulation once, in order, and none is larger than asked."""
    names = [f"SB35_{number}" for number in range(count)]
    blocks = in_blocks(names, size)
    assert [name for block in blocks for name in block] == names
    assert all(len(block) == size for block in blocks[:-1])
    assert all(blocks)
