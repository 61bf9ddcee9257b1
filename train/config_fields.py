"""What the fields of a config dataclass say of themselves: their words, values and defaults."""

import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from pipeline.config import to_plain

REQUIRED = dataclasses.MISSING
"""Stands for the default of a field that has none."""

_WORDS = {str: "texts", int: "integers", float: "numbers", bool: "booleans", Path: "paths"}


def summary_of(cls: type[Any]) -> str:
    """Give the first paragraph of a dataclass's docstring on one line."""
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split())


def field_docs(cls: type[Any]) -> dict[str, str]:
    """Give the text below every field of a dataclass, on one line each; none where none stands.

    A field of which a subclass only changes the default keeps the text of its base.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            found |= dict(_docs_in(textwrap.dedent(inspect.getsource(base))))
    return found


def _docs_in(source: str) -> Iterator[tuple[str, str]]:
    top = next(node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef))
    for above, below in itertools.pairwise(top.body):
        match above, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                yield name, " ".join(text.split())


def defaults_of(cls: type[Any]) -> dict[str, Any]:
    """Give the default of every field of a dataclass, `REQUIRED` where it has none."""
    return {
        field.name: field.default
        if field.default_factory is dataclasses.MISSING
        else field.default_factory()
        for field in dataclasses.fields(cls)
    }


def values_of(config: Any) -> dict[str, Any]:
    """Give the fields of a dataclass as they are, one level deep."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def inner_classes(path: tuple[str, ...], cls: type[Any]) -> dict[type[Any], list[tuple[str, ...]]]:
    """Give the dataclasses that the fields hold, each with the paths of the fields that do.

    Args:
        path: Where `cls` itself stands, e.g. `("train",)`.
        cls: A dataclass; its fields hold others alone, in a list, or perhaps.
    """
    found: dict[type[Any], list[tuple[str, ...]]] = {}
    for name, hint in get_type_hints(cls).items():
        if (kind := _dataclass_in(hint)) is not None:
            found.setdefault(kind, []).append((*path, name))
    return found


def _dataclass_in(hint: Any) -> type[Any] | None:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint
    return next((kind for arm in get_args(hint) if (kind := _dataclass_in(arm))), None)


def kind_in_words(hint: Any) -> str:
    """Put the type of a field into words: `list of numbers`, or the texts that a Literal admits."""
    origin, arms = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        some = [kind_in_words(arm) for arm in arms if arm is not NoneType]
        return ", ".join(dict.fromkeys(some + ["`null`"] * (NoneType in arms)))
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arms)
    if origin is tuple:
        count = "list of" if arms[-1] is Ellipsis else f"{len(arms)}"
        return f"{count} {_plural(arms[0])}"
    if hint is bool:
        return "`true`, `false`"
    return _WORDS[hint].removesuffix("s") if hint in _WORDS else "mapping"


def _plural(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join("`null`" if arm is NoneType else _plural(arm) for arm in get_args(hint))
    return _WORDS.get(hint) or re.sub("^(mapping|list)", r"\1s", kind_in_words(hint))


def default_in_words(value: Any) -> str:
    """Give a default as Markdown; nothing for a dataclass, whose fields have their own."""
    if value is REQUIRED:
        return "required"
    if isinstance(value, float) and len(repr(value)) > 10:
        return f"≈ `{value:.4g}`"
    if dataclasses.is_dataclass(value) and not _unusual(value):
        return ""
    return f"`{as_yaml(value)}`"


def as_yaml(value: Any, *, flow: bool | None = True) -> str:
    """Write a value as it would stand in the file, without the defaults of dataclasses in it.

    Args:
        value: What a config may hold.
        flow: On one line; None puts only the innermost lists and mappings on one.
    """
    plain = _unusual(value)
    text = yaml.safe_dump(
        plain, default_flow_style=flow, sort_keys=False, width=10**6, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _unusual(value: Any) -> Any:
    """Make a value plain; of dataclasses keep the fields that differ from their default."""
    if isinstance(value, list | tuple):
        return [_unusual(item) for item in value]
    if isinstance(value, Mapping) or not dataclasses.is_dataclass(value):
        return to_plain(value)
    usual = defaults_of(type(value))
    return {k: _unusual(v) for k, v in values_of(value).items() if v != usual[k]}
