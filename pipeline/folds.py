"""Core: labelled images held out in turn, so that some teacher has not seen each of them."""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Fold:
    """One of `count` parts of the labelled images, numbered from 1."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if self.count < 2 or not 1 <= self.number <= self.count:
            raise ConfigError(
                f"fold: expected 1/2 to K/K with K of at least 2, found {self.number}/{self.count}"
            )

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def parse_fold(text: str) -> Fold:
    """Read "2/4" as the second of four folds.

    Raises:
        ConfigError: If it is not that.
    """
    match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text)
    if match is None:
        raise ConfigError(f"fold: expected NUMBER/COUNT such as 1/4, found {text!r}")
    return Fold(int(match[1]), int(match[2]))


def held_out_images(labelled: npt.NDArray[np.int64], fold: Fold) -> npt.NDArray[np.int64]:
    """Choose a fold's images.

    Args:
        labelled: Manifest rows of all labelled images, (n,), in order.
        fold: Which part; the parts are disjoint, cover all, and differ in size by one at most.

    Returns:
        Manifest rows, ascending. The same for the same images, whatever else the data set holds.

    Raises:
        ConfigError: If there are fewer images than folds.
    """
    if len(labelled) < fold.count:
        raise ConfigError(
            f"fold {fold}: expected at least {fold.count} labelled images, found {len(labelled)}; "
            "take fewer folds or raise data.labelled"
        )
    order = np.random.default_rng(0).permutation(len(labelled))
    return np.sort(np.asarray(labelled, np.int64)[order % fold.count == fold.number - 1])
