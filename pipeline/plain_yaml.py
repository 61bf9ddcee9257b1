"""Core: plain values out of YAML that nobody vouches for."""

import re
from typing import Any

import yaml

from pipeline.errors import ConfigError
from pipeline.found_values import shown, why

MAX_CHARACTERS = 1 << 18
"""A longer config is refused; PyYAML reads about 300,000 characters a second."""

MAX_VALUES = 100_000
"""Values of a config, those that an alias (`*name`) repeats counted again each time."""

MAX_DEPTH = 64
"""Levels of lists and mappings; PyYAML's time grows with their square."""

_MAX_DIGITS = 100


class _Loader(yaml.SafeLoader):
    """YAML without tags, with 1e-4 read as a number and a repeated key refused."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if tag := getattr(event, "tag", None):
            raise _refusal(event.start_mark, f"expected plain values, found the tag {shown(tag)}")
        if self._depth >= MAX_DEPTH:
            raise _refusal(event.start_mark, f"nested too deeply, more than {MAX_DEPTH} levels")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            text = key.value
            if key.tag == "tag:yaml.org,2002:merge":
                raise _refusal(key.start_mark, "expected keys, found '<<'; write the values out")
            if key.tag != "tag:yaml.org,2002:str":
                found = shown(text) if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise _refusal(key.start_mark, f"expected text as a key, found {found}")
            if text in seen:
                raise _refusal(node.start_mark, f"key {shown(text)} is given twice")
            seen.add(text)
        return super().construct_mapping(node, deep=deep)


def _refusal(mark: Any, reason: str) -> ConfigError:
    return ConfigError(f"{mark.name}, line {mark.line + 1}: {reason}")


def parse_yaml(text: str, where: str) -> Any:
    """Read plain values from YAML.

    Args:
        text: The YAML; empty text is None.
        where: What it is called; begins the message of every error.

    Returns:
        Mappings with text as keys, lists and scalars, which aliases may share but not without end.

    Raises:
        ConfigError: If it is no YAML, has a tag, or stands for more than it may.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(
            f"{where}: expected at most {MAX_CHARACTERS} characters, found {len(text)}"
        )
    try:
        loader = _Loader(text)
        loader.name = where  # what marks in messages are called after
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if (values := _count_values(node, {})) > MAX_VALUES:
                raise ConfigError(
                    f"{where}: expected at most {MAX_VALUES} values, found {shown(values)} with "
                    "its aliases written out"
                )
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except ConfigError:
        raise
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML ({why(error, 300)})") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply") from error
    except (ValueError, ArithmeticError) as error:  # a date of month 13, a number without end
        raise ConfigError(f"{where}: a value cannot be read ({why(error)})") from error


def _count_values(node: yaml.Node, counts: dict[int, int | None]) -> int:
    """Count the values below a node, each as often as aliases name it."""
    if isinstance(node, yaml.ScalarNode):
        if node.tag[-4:] in (":int", "loat") and len(node.value) > _MAX_DIGITS:
            raise _refusal(
                node.start_mark,
                f"expected numbers of at most {_MAX_DIGITS} digits, found {len(node.value)}",
            )
        return 1
    if id(node) in counts:
        known = counts[id(node)]
        if known is None:
            raise _refusal(node.start_mark, "expected values, found an anchor that holds itself")
        return known
    counts[id(node)] = None
    inner: list[yaml.Node] = []
    for entry in node.value:
        inner += entry if isinstance(entry, tuple) else (entry,)
    total = counts[id(node)] = 1 + sum(_count_values(one, counts) for one in inner)
    return total


_Loader.add_implicit_resolver(  # PyYAML reads YAML 1.1, in which 1e-4 is a string
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)
