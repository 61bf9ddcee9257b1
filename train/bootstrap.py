"""Core: how far figures would move with other images: bootstrap intervals of ratios of sums.

Sentences of one image share its pixels, so that images are drawn, not sentences. Shape letters:
I images, E sentences, M metrics, R resamples.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
LEVEL = 0.95
"""Share of the resamples that an interval holds."""
_DRAWN_AT_ONCE = 1 << 20
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Ratios:
    """Metrics that are a ratio of two sums over sentences, summed by image.

    Of the mean IoU that is IoU over 1, of the overall IoU intersection over union, of a precision
    1 where the sentence reaches it, over 1.
    """

    numerator_IM: FloatArray
    denominator_IM: FloatArray

    def __post_init__(self) -> None:
        if self.numerator_IM.shape != self.denominator_IM.shape or self.numerator_IM.ndim != 2:
            raise ValueError(
                f"ratios: expected two arrays (images, metrics) of one shape, found "
                f"{self.numerator_IM.shape} and {self.denominator_IM.shape}"
            )

    @property
    def values_M(self) -> FloatArray:
        """The metrics of the images as they are, (M,); 0 where the denominator is."""
        return _divide(self.numerator_IM.sum(axis=0), self.denominator_IM.sum(axis=0))

    def resampled(self, times_RI: FloatArray) -> FloatArray:
        """Give the metrics (R, M) of images that count as often as `times_RI` says."""
        return _divide(times_RI @ self.numerator_IM, times_RI @ self.denominator_IM)


def by_image(
    image_E: npt.NDArray[np.int64], numerator_EM: FloatArray, denominator_EM: FloatArray
) -> Ratios:
    """Sum the parts of ratios by image, (E, M) to (I, M); images in rising order of their row."""
    images, position_E = np.unique(image_E, return_inverse=True)
    sums = []
    for part_EM in (numerator_EM, denominator_EM):
        sum_IM = np.zeros((len(images), part_EM.shape[1]), np.float64)
        np.add.at(sum_IM, position_E, part_EM)
        sums.append(sum_IM)
    return Ratios(*sums)


def intervals(ratios: Ratios, *, resamples: int, seed: int) -> list[tuple[float, float]] | None:
    """Give every metric's 95 % percentile interval over images drawn with replacement.

    Args:
        ratios: The metrics by image.
        resamples: Draws R.
        seed: Of the draws; the same seed and number of images draw the same images.

    Returns:
        (low, high) per metric, to six digits; None if there are fewer than two images.
    """
    count = len(ratios.numerator_IM)
    if count < 2:
        return None
    drawn = [ratios.resampled(times) for times in _draw(count, resamples, seed)]
    return _percentiles(np.concatenate(drawn))


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How two runs differ in one metric on the same images."""

    gain: float
    """This run's value minus the other's."""
    low: float
    """Lower end of the gain's 95 % interval."""
    high: float
    """Its upper end."""

    @property
    def outside_chance(self) -> bool:
        """Whether the interval leaves 0 out: other images would hardly turn the sign."""
        return self.low > 0 or self.high < 0


def paired_differences(
    this: Ratios, other: Ratios, *, resamples: int, seed: int
) -> list[Difference] | None:
    """Compare two runs on the same images, which are drawn for both at once.

    What makes an image hard for both cancels, so that the interval is narrower than those of the
    two runs suggest.

    Returns:
        A difference per metric; None if there are fewer than two images.

    Raises:
        ValueError: If the two have other numbers of images or metrics.
    """
    if this.numerator_IM.shape != other.numerator_IM.shape:
        raise ValueError(
            f"paired: expected one shape (images, metrics), found {this.numerator_IM.shape} "
            f"and {other.numerator_IM.shape}"
        )
    count = len(this.numerator_IM)
    if count < 2:
        return None
    drawn = [this.resampled(t) - other.resampled(t) for t in _draw(count, resamples, seed)]
    ends = _percentiles(np.concatenate(drawn))
    gains = (this.values_M - other.values_M).tolist()
    return [
        Difference(gain=round(gain, _DIGITS), low=low, high=high)
        for gain, (low, high) in zip(gains, ends, strict=True)
    ]


def _draw(count: int, resamples: int, seed: int) -> Iterator[FloatArray]:
    """Give how often each image is drawn, (r, I) a piece, in pieces that fit into a cache."""
    rng = np.random.default_rng([seed, count])
    step = max(1, _DRAWN_AT_ONCE // count)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, count, (rows, count))
        drawn += np.arange(rows)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=rows * count)
        yield times.reshape(rows, count).astype(np.float64)


def _percentiles(value_RM: FloatArray) -> list[tuple[float, float]]:
    tail = (1 - LEVEL) / 2
    low_M, high_M = np.quantile(value_RM, [tail, 1 - tail], axis=0)
    pairs = zip(low_M.tolist(), high_M.tolist(), strict=True)
    return [(round(low, _DIGITS), round(high, _DIGITS)) for low, high in pairs]


def _divide(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
