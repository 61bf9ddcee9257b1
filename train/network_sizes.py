"""What the networks are called and how large they are; needs no torch."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, cast

from pipeline.config import parse_config, to_plain
from pipeline.errors import ConfigError
from train.clipseg_sizes import CLIPSEG_SIZES, ClipSegConfig
from train.lavt_sizes import LAVT_SIZES, LavtConfig

Options = Mapping[str, Any]
"""Values by name of a field of the architecture's config; lists are taken for tuples."""
ConfigT = TypeVar("ConfigT")

SIZES: dict[str, Mapping[str, LavtConfig | ClipSegConfig]] = {
    "lavt": LAVT_SIZES,
    "clipseg": CLIPSEG_SIZES,
}
"""Name of a network, as in `networks.NETWORKS`, to its sizes by name."""


def lavt_config(size: str = "toy", options: Options | None = None) -> LavtConfig:
    """Look a size up and replace some of its values.

    Args:
        size: A key of `LAVT_SIZES`.
        options: Values by name of a `LavtConfig` field; lists are taken for tuples.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: If there is no such size or field, or the values do not fit together.
    """
    return _look_up("lavt", LAVT_SIZES, size, options)


def clipseg_config(size: str = "toy", options: Options | None = None) -> ClipSegConfig:
    """Look a size of `CLIPSEG_SIZES` up, as `lavt_config` does."""
    return _look_up("clipseg", CLIPSEG_SIZES, size, options)


def longest_sentence(name: str, size: str, options: Options) -> int:
    """Give how many tokens the position table of a size with options holds; checks both.

    Raises:
        ConfigError: As `lavt_config`.
    """
    return _look_up(name, SIZES[name], size, options).text_positions


def _look_up(
    name: str, sizes: Mapping[str, ConfigT], size: str, options: Options | None
) -> ConfigT:
    if size not in sizes:
        raise ConfigError(f"size: unknown {size!r}; known for {name} are {', '.join(sizes)}")
    found: Any = sizes[size]
    known = [field.name for field in fields(found)]
    unknown = sorted(set(options or {}) - set(known))
    if unknown:
        raise ConfigError(
            f"{name}: no such option: {', '.join(unknown)}; known are {', '.join(known)}"
        )
    values = to_plain(found) | dict(options or {})
    return cast("ConfigT", parse_config(type(found), values, f"{name} options"))
