"""docs/cluster.md and the script that it is about say what is so."""

import re

import yaml
from batch_runs import REPOSITORY

from bind_core.config import DatasetConfig, LauncherName

PAGE = (REPOSITORY / "docs" / "cluster.md").read_text(encoding="utf-8")
SCRIPT = (REPOSITORY / "scripts" / "run_data_generation.sh").read_text(encoding="utf-8")


def test_the_example_is_a_configuration() -> None:
    """The configuration of the worked example can be used as it stands."""
    (text,) = re.findall(r"cat > run\.yaml <<END\n(.*?)END\n", PAGE, re.DOTALL)
    config = DatasetConfig.from_values(yaml.safe_load(text))
    assert config.launcher is LauncherName.SBATCH
    assert config.slurm_job.options == ("--constraint=icelake",)


def test_every_variable_is_explained() -> None:
    """The head of the script names every variable that it reads, and the page none that it does not."""
    head, _, body = SCRIPT.partition("set -euo pipefail")
    read = set(re.findall(r"\bBIND_[A-Z_]+", body)) | {"BIND_PARAM_FILE"}
    assert read == set(re.findall(r"\bBIND_[A-Z_]+", head))
    assert set(re.findall(r"\bBIND_[A-Z_]+", PAGE)) <= read


def test_the_formulas_give_what_was_measured() -> None:
    """The sizing formulas are within a tenth of the figures of docs/performance.md."""
    seconds, share = (float(number) for number in re.search(r"\((0\.\d+) \+ (0\.\d+) · S\)", PAGE).groups())
    base, per_million, per_rank = (
        float(number) for number in re.search(r"(0\.\d+) \+ (0\.\d+) · n \+ (0\.\d+) · \(r", PAGE).groups()
    )
    million = {256: 256**3 / 1e6, 512: 512**3 / 1e6}
    for side, samples, measured in ((256, 100, 11.6), (256, 400, 27.7), (512, 100, 75.8)):
        assert abs(4 + million[side] * (seconds + share * samples) - measured) < 0.1 * measured
    for side, ranks, measured in ((256, 1, 0.79), (512, 1, 4.33), (512, 2, 4.47), (512, 4, 4.72)):
        maps = 100 * 0.44 / 1024
        assert abs(base + per_million * million[side] + per_rank * (ranks - 1) + maps - measured) < 0.1 * measured
