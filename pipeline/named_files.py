"""Shell: whether the files are there that a config names, asked before anything slow is begun."""

from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import ConfigError


def refuse_missing(named: Mapping[str, Path]) -> None:
    """Refuse a config that names files which are not there.

    Args:
        named: Path by the key of the config, such as `candidates.checkpoint`.

    Raises:
        ConfigError: Names all that are missing.
    """
    missing = [f"{key}: {path}" for key, path in named.items() if not path.exists()]
    if missing:
        raise ConfigError(
            f"expected the files that the config names, found none at {'; '.join(missing)}; put "
            "them there, or correct the paths"
        )
