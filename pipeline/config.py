"""Turn `stages.yaml` and `--set` into frozen dataclasses, strictly, once, at the edge."""

import dataclasses
import hashlib
import json
import math
import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pipeline.credentials import holds_credentials
from pipeline.errors import ConfigError
from pipeline.found_values import shown, why
from pipeline.places import is_url, redacted
from pipeline.plain_yaml import parse_yaml

SECTIONS = ("data", "candidates", "teacher", "refine", "calibrate", "train", "evaluate", "rounds")
"""The sections of stages.yaml, one per stage, besides `version`."""

VERSION = 1
_MAX_REASON = 1000
"""Characters of what a section has against its values."""
_NAME = re.compile(r"[a-z_0-9]+(\.[a-z_0-9]+)*")

T = TypeVar("T")


def load_document(path: Path, overrides: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Read stages.yaml and apply `--set` overrides.

    Args:
        path: The YAML file.
        overrides: `section.key=value` strings; the value is read as YAML.

    Returns:
        One mapping per section of `SECTIONS`, empty where the file has none.

    Raises:
        ConfigError: If the file cannot be read, has an unknown section or another version, or if
            it or an override holds credentials: a config is printed, and kept with what it made.
    """
    for override in overrides:
        for part in (override, override.partition("=")[2]):
            _refuse_credentials(part, f"--set {_name_in(override)}")
    document = _read_yaml(path)
    version = document.pop("version", None)
    if version != VERSION:
        raise ConfigError(
            f"{path}: expected 'version: {VERSION}' at the top, found {shown(version)}"
        )
    for override in overrides:
        _apply(document, override)
    unknown = [key for key in document if key not in SECTIONS]
    if unknown:
        raise ConfigError(
            f"{path}: unknown section {shown(unknown[0])}; known are {', '.join(SECTIONS)}"
        )
    sections = {name: document.get(name) or {} for name in SECTIONS}
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise ConfigError(f"{path}: {name}: expected a mapping, found {shown(section)}")
    return sections


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give --config") from error
    except ValueError as error:  # no UTF-8, or a name that no file can have
        raise ConfigError(f"{shown(str(path), 300)}: not UTF-8 text") from error
    for number, line in enumerate(text.splitlines(), 1):  # first: what is no YAML is quoted
        _refuse_credentials(line, f"{path}: line {number}")
    document = parse_yaml(text, str(path))
    if not isinstance(document, dict):
        raise ConfigError(
            f"{path}: expected a mapping of sections, found {type(document).__name__}"
        )
    return cast("dict[str, Any]", document)


def _refuse_credentials(text: str, where: str) -> None:
    if holds_credentials(text):
        raise ConfigError(
            f"{where}: expected no credentials, found a URL with some in it; copy the files to a "
            "disk, or leave credentials to the environment"
        )


def _name_in(override: str) -> str:
    """Give the name of an override, if it is one: what else stands there may be a secret."""
    name = override.partition("=")[0]
    return name if _NAME.fullmatch(name) else "…"


def _apply(document: dict[str, Any], override: str) -> None:
    name, equals, value = override.partition("=")
    keys = name.split(".")
    if not equals or len(keys) < 2 or not all(keys):
        raise ConfigError(f"--set {shown(override)}: expected section.key=value")
    target = document
    for key in keys[:-1]:
        inner = target.get(key)
        if inner is None:
            inner = target[key] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {shown(override)}: {shown(key)} is no mapping")
        target = inner
    target[keys[-1]] = parse_yaml(value, f"--set {shown(override)}")


def parse_config(cls: type[T], mapping: Any, where: str) -> T:
    """Build the frozen dataclass `cls` from a mapping, refusing what does not fit.

    Knows nested dataclasses, `X | None`, `tuple[T, ...]`, `dict[str, T]`, `Literal`, `Path`
    (`~` is expanded), `str`, `int`, `float` and `bool`. An integer is a valid float; a bool is
    no integer.

    Args:
        cls: A dataclass whose fields carry type hints.
        mapping: What YAML gave.
        where: How to name this place in errors, e.g. `stages.yaml: candidates`.

    Raises:
        ConfigError: For an unknown, missing or mistyped key, or where `__post_init__` refuses;
            begins with the place.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where}: expected a mapping, found {shown(mapping)}")
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cast("Any", cls)) if field.init}
    for key in mapping:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {shown(key)}; known are {', '.join(fields)}")
    for name, field in fields.items():
        absent = field.default is dataclasses.MISSING
        if absent and field.default_factory is dataclasses.MISSING and name not in mapping:
            raise ConfigError(f"{where}: key {name!r} is missing")
    values = {key: _parse(hints[key], value, f"{where}.{key}") for key, value in mapping.items()}
    try:
        return cls(**values)
    except ValueError as error:  # its message may repeat a value of any length
        raise ConfigError(f"{where}: {why(error, _MAX_REASON)}") from error


def _parse(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _parse_union(hint, value, where)
    if origin is Literal:
        if value in get_args(hint) and not isinstance(value, bool):
            return value
        if isinstance(value, str):
            _check_text(value, where)
        choices = ", ".join(map(repr, get_args(hint)))
        raise ConfigError(f"{where}: expected one of {choices}, found {shown(value)}")
    if origin in (tuple, dict):
        return _parse_container(hint, value, where)
    if dataclasses.is_dataclass(hint):
        return parse_config(cast("type[Any]", hint), value, where)
    return _parse_scalar(hint, value, where)


def _parse_union(hint: Any, value: Any, where: str) -> Any:
    arms = [arm for arm in get_args(hint) if arm is not types.NoneType]
    if value is None and len(arms) < len(get_args(hint)):
        return None
    message = ""
    for arm in arms:
        try:
            return _parse(arm, value, where)
        except ConfigError as error:
            message = str(error)
    raise ConfigError(message)


def _parse_container(hint: Any, value: Any, where: str) -> Any:
    arguments = get_args(hint)
    if get_origin(hint) is dict:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ConfigError(f"{where}: expected a mapping with text keys, found {shown(value)}")
        return {key: _parse(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"{where}: expected a list, found {shown(value)}")
    if arguments[-1] is Ellipsis:
        return tuple(_parse(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if len(value) != len(arguments):
        raise ConfigError(f"{where}: expected {len(arguments)} values, found {len(value)}")
    pairs = zip(arguments, value, strict=True)
    return tuple(_parse(arm, item, f"{where}[{i}]") for i, (arm, item) in enumerate(pairs))


def _parse_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is Path and isinstance(value, str):
        return _parse_path(value, where)
    if isinstance(value, str):
        _check_text(value, where)
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if is_integer and not -(2**63) <= value < 2**64:
        raise ConfigError(f"{where}: expected a number of 64 bits, found {shown(value)}")
    if hint is float and (is_integer or isinstance(value, float)):
        if not math.isfinite(value):
            raise ConfigError(f"{where}: expected a finite number, found {shown(value)}")
        return float(value)
    if type(value) is hint:
        return value
    raise ConfigError(f"{where}: expected {hint.__name__}, found {shown(value)}")


def _parse_path(value: str, where: str) -> Path:
    if is_url(value):
        raise ConfigError(
            f"{where}: expected a path on a disk, found the URL {shown(redacted(value))}; copy "
            "the files to a disk, or mount them there"
        )
    _check_text(value, where)
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{where}: expected a path, found {shown(value)}, of no known user"
        ) from error


def _check_text(value: str, where: str) -> None:
    """Refuse text that no file and no file name can hold, or that nobody may read."""
    _refuse_credentials(value, where)
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ConfigError(f"{where}: expected Unicode text, found {shown(value)}")


def to_plain(value: Any) -> Any:
    """Turn a config into JSON's types: dataclasses to dicts, tuples to lists, paths to text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: to_plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def canonical_json(value: Any) -> str:
    """Give the one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(value: Any) -> str:
    """Give the sha256 of a value's canonical JSON, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Name what differs between two plain values, one line each: `key: old, now new`.

    Of mappings whose `name` differs that alone is told: their other keys are of different things.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        keys = old.keys() | new.keys()
        if "name" in old and "name" in new and old["name"] != new["name"]:
            keys = {"name"}
        lines: list[str] = []
        for key in sorted(keys):
            inner = f"{where}.{key}" if where else str(key)
            lines += differences(old.get(key), new.get(key), inner)
        return lines
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{where}[{i}]")]
    return [] if old == new else [f"{where}: {_short(old)}, now {_short(new)}"]


def _short(value: Any) -> str:
    text = redacted(json.dumps(value, sort_keys=True))  # of an older version's plan it may tell
    return text if len(text) <= 60 else text[:57] + "..."
