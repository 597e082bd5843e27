"""No file that is read can bring code with it: nothing in the project would run it."""

import ast
from pathlib import Path

import pytest
import yaml

from bind_core.config import DatasetConfig
from bind_core.errors import ConfigurationError

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for place in ("bind_core", "storage", "tasks", "flows", "bench", "scripts", ".")
    for path in ((ROOT / place).rglob("*.py") if place != "." else ROOT.glob("*.py"))
)
UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
RUNNING = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "pd.eval", "runpy.run_path"}
UNSAFE_YAML = {"yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.unsafe_load_all"}

BOMB = "a: &a0 [x, x]\n" + "".join(f"b{level}: &a{level} [*a{level - 1}, *a{level - 1}]\n" for level in range(1, 40))


def calls_of(path: Path) -> list[tuple[str, ast.Call]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_what_is_read(path: Path) -> None:
    """No module unpickles, evaluates text, loads YAML by an unsafe loader, runs a shell or unpacks archives blindly."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.split(".")[0] for name in names} & UNPICKLING
    for name, call in calls_of(path):
        words = {word.arg: ast.unparse(word.value) for word in call.keywords}
        where = f"{path.name}, line {call.lineno}: {ast.unparse(call)}"
        assert name not in RUNNING | UNSAFE_YAML, where
        assert words.get("shell") in (None, "False"), where
        if name in {"np.load", "numpy.load"} or name.endswith("read_array"):
            assert words.get("allow_pickle") == "False", where
        if name.endswith(("extractall", "torch.load")):
            assert "filter" in words or words.get("weights_only") == "True", where
        assert words.get("allow_pickle") in (None, "False"), where


@pytest.mark.parametrize(
    "text",
    [
        "set_name: !!python/object/apply:os.system ['touch {folder}/hacked']",
        "set_name: !!python/object/new:subprocess.Popen [['touch', '{folder}/hacked']]",
        "set_name: !!python/name:os.system",
        "set_name: !!python/module:os",
        "!!python/object/apply:subprocess.check_output [[touch, '{folder}/hacked']]",
    ],
)
def test_a_configuration_cannot_run_code(tmp_path: Path, text: str) -> None:
    """Tags that make Python objects are refused with the file's name, and nothing is made."""
    path = tmp_path / "dataset.yaml"
    path.write_text(text.format(folder=tmp_path))
    with pytest.raises(ConfigurationError, match=r"dataset\.yaml is not valid YAML"):
        DatasetConfig.from_yaml(path)
    assert [file.name for file in tmp_path.iterdir()] == ["dataset.yaml"]


def test_the_example_would_have_run(tmp_path: Path) -> None:
    """The tag that is refused above does run under a loader that trusts, so that its refusal means something."""
    text = f"!!python/object/apply:os.mkdir ['{tmp_path / 'made'}']"
    yaml.load(text, yaml.UnsafeLoader)  # noqa: S506
    assert (tmp_path / "made").is_dir()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (BOMB, "values"),
        ("a: &a [*a]", "holds itself"),
        ("a: " + "[" * 60 + "]" * 60, "levels"),
        ("a: " + "[" * 100_000, "levels"),
        ("a: !!bool maybe", "not valid YAML"),
        ("a: 2020-13-45", "month must be"),
        ("a: " + "9" * 5000, "digits"),
        ("#" * (1 << 20) + "\na: 1", "bytes"),
    ],
)
def test_a_configuration_that_grows_as_it_is_read_is_refused(tmp_path: Path, text: str, part: str) -> None:
    """Aliases of aliases, endless nesting, values that are not what their tags say, and huge files are refused."""
    path = tmp_path / "dataset.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        DatasetConfig.from_yaml(path)
    assert str(path) in str(caught.value)
    assert part in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_a_large_value_is_shown_in_part() -> None:
    """What a message shows of a wrong value is short, however large the value."""
    with pytest.raises(ConfigurationError) as caught:
        DatasetConfig.from_values({"resolution": ["x" * 10_000] * 1000, "set_name": "y" * 100_000 + "!"})
    assert len(str(caught.value)) < 5000


def test_a_stratum_that_begins_at_infinity_is_refused() -> None:
    """A mass range without any mass in it is explained, where it has no upper limit too."""
    with pytest.raises(ConfigurationError, match=r"max_mass \(inf\) must be greater than min_mass \(inf\)"):
        DatasetConfig.from_values({"strata": [{"min_mass": float("inf")}]})
