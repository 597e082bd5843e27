"""A YAML file of settings, read without trust: it can name values, and nothing else."""

import re
from pathlib import Path
from typing import Any

import yaml

from bind_core.errors import ConfigurationError

LARGEST_FILE = 1 << 20
"""Bytes; a configuration with a hundred strata has 10,000."""
MOST_VALUES = 100_000
"""Of a file, counting what an alias repeats each time: a few lines of aliases can stand for billions."""
DEEPEST = 50
"""Levels of lists and mappings within each other."""

_OF_WRONG_TAGS = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What the library lets through, beside its own errors, of values that are not what their tags say."""


class _SettingsLoader(yaml.SafeLoader):
    """YAML without two of its surprises: 033 is no octal 27, and a setting that stands there twice is an error."""


def _decimal(loader: _SettingsLoader, node: yaml.ScalarNode) -> int:
    text = str(node.value)
    return int(text) if re.fullmatch(r"[-+]?0[0-9]+", text) else loader.construct_yaml_int(node)


def _mapping_without_repeats(loader: _SettingsLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        name = str(key.value)
        if name in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the setting {name} is there twice", node.start_mark)
        seen.add(name)
    return loader.construct_mapping(node, deep=True)


_SettingsLoader.add_constructor("tag:yaml.org,2002:int", _decimal)
_SettingsLoader.add_constructor("tag:yaml.org,2002:map", _mapping_without_repeats)


def read_yaml_mapping(path: Path) -> dict[str, Any]:
    """Read the mapping that a YAML file of settings holds.

    Raises
    ------
    ConfigurationError
        If the file cannot be read, is larger than any configuration, holds something other than a mapping of plain
        values, or would grow without bounds as it is read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigurationError(
            f"Cannot read the configuration file {path}: {error.strerror or error}. Give the path of a YAML file; "
            f"`bind-data config` prints one to start from."
        ) from error
    if len(content) > LARGEST_FILE:
        raise ConfigurationError(
            f"The configuration file {path} has more than the {LARGEST_FILE:,} bytes that one can have. Give the path "
            "of a YAML file of settings; `bind-data config` prints one to start from."
        )
    try:
        values = _plain_values(content.decode("utf-8"))
    except (yaml.YAMLError, *_OF_WRONG_TAGS) as error:
        raise ConfigurationError(f"The configuration file {path} is not valid YAML: {_reason(error)}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigurationError(
            f"The configuration file {path} must hold `name: value` lines, but it holds a {type(values).__name__}."
        )
    return {str(name): value for name, value in values.items()}


def _plain_values(text: str) -> Any:
    loader = _SettingsLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _require_bounds(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _require_bounds(root: yaml.Node) -> None:
    """Refuse values within themselves, too many levels, and aliases that multiply."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, depth: int) -> int:
        if depth > DEEPEST:
            raise yaml.constructor.ConstructorError(
                None, None, f"there are more than {DEEPEST} levels, or a value holds itself", node.start_mark
            )
        if id(node) not in sizes:
            inner = node.value if isinstance(node, yaml.CollectionNode) else []
            parts = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
            sizes[id(node)] = 1 + sum(size(part, depth + 1) for part in parts)
        return sizes[id(node)]

    if size(root, 0) > MOST_VALUES:
        raise yaml.constructor.ConstructorError(
            None, None, f"its aliases stand for more than {MOST_VALUES:,} values", root.start_mark
        )


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"there are more than {DEEPEST} levels of lists and mappings"
    return str(error) if isinstance(error, yaml.YAMLError | UnicodeDecodeError) else f"{type(error).__name__}: {error}"
