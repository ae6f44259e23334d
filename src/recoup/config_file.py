"""Read a run's YAML and `key=value` overrides into a `RunConfig`; errors name the key and offer near ones."""

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from recoup.config import RunConfig
from recoup.errors import ConfigError, unknown_name

M = TypeVar("M", bound=BaseModel)


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read `path`, apply `overrides` such as `recover.learning_rate=1e-5`, validate.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, a value is wrong, or values contradict.
    """
    return load(RunConfig, path, overrides)


def load(kind: type[M], path: Path, overrides: Sequence[str] = ()) -> M:
    """The same of any config, such as a `Sweep`.

    Raises:
        ConfigError: as for `load_config`.
    """
    return parse(kind, _read_yaml(path), str(path), overrides)


def parse(kind: type[M], tree: dict[str, Any], where: str, overrides: Sequence[str] = ()) -> M:
    """Validate a plain tree as a `kind`, after `overrides`; `where` names its origin in errors.

    Raises:
        ConfigError: as for `load_config`.
    """
    for override in overrides:
        _apply(tree, override)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(error, kind)}") from None


def shipped_config(name: str) -> Path:
    """A config that comes with recoup: beside the package when installed, in the checkout's `configs/` otherwise."""
    installed = Path(__file__).parent / "configs" / f"{name}.yaml"
    return installed if installed.is_file() else Path(__file__).parents[2] / "configs" / f"{name}.yaml"


def settings_tree(settings: Sequence[str]) -> dict[str, Any]:
    """`["rollout.max_tokens=48", "steps=20"]` as a tree.

    Raises:
        ConfigError: one is not `key=value`.
    """
    tree: dict[str, Any] = {}
    for setting in settings:
        _apply(tree, setting)
    return tree


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file; `configs/` holds one per kind of run")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, found {type(tree).__name__}")
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {override!r}: expected key=value, such as recover.steps=20")
    node: Any = tree
    *parents, last = key.split(".")
    for parent in parents:
        node = node[_index(node, parent, key)] if isinstance(node, list) else node.setdefault(parent, {})
    if not isinstance(node, dict | list):
        raise ConfigError(f"override {override!r}: {'.'.join(parents)} is a value, not a group of keys")
    if isinstance(node, list):
        node[_index(node, last, key)] = _value(text)
    else:
        node[last] = _value(text)


def _value(text: str) -> Any:
    """YAML reads `1e-5` as a string (it wants a dot); a user means the number."""
    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _index(node: list[Any], text: str, key: str) -> int:
    if not text.isdigit() or int(text) >= len(node):
        raise ConfigError(f"override {key!r}: {text!r} is not a position in a list of {len(node)}")
    return int(text)


def _explain(error: ValidationError, root: type[BaseModel]) -> str:
    """The first problem in one line; the rest are usually its echoes."""
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"]]
    where = ".".join(location)
    if first["type"] == "extra_forbidden":
        return f"{'.'.join([*location[:-1], ''])}{unknown_name('key', location[-1], _fields_at(location[:-1], root))}"
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    shown = (
        ""
        if isinstance(given, dict | list | tuple | BaseModel) or first["type"] == "missing"
        else f" (given {given!r})"
    )
    return f"{where}: {message}{shown}" if where else message


def _fields_at(location: Sequence[str], root: type[BaseModel]) -> list[str]:
    """Field names of the config class at `location`, following unions by their `type` tag."""
    models: list[type[BaseModel]] = [root]
    for part in location:
        if part.isdigit():
            continue
        tagged = [m for m in models if "type" in m.model_fields and m.model_fields["type"].default == part]
        children = [
            child for m in models if part in m.model_fields for child in _models_in(m.model_fields[part].annotation)
        ]
        models = tagged or children or models  # a key of a mapping is no field
    return sorted({name for m in models for name in m.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, tuple, dict) or hasattr(annotation, "__metadata__"):
        return [model for argument in get_args(annotation) for model in _models_in(argument)]
    return []
