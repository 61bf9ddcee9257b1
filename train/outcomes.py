"""What an evaluation found, sentence by sentence: the columns that every figure is made of.

Shape letters: E sentences.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import StoreError
from pipeline.places import Place
from pipeline.records import atomic_write
from refine.quality import SIZES as SIZE_SHARES
from train.bootstrap import Difference, Ratios, by_image, intervals, paired_differences
from train.metrics import THRESHOLDS, IntArray, IoUSums, iou_of, sum_up

METRICS = ("oIoU", "mIoU", *(f"P@{limit:g}" for limit in THRESHOLDS))
"""Names of the figures, in the order of the tables."""
FORMAT = 1
SizeRule = Callable[[IntArray, IntArray], IntArray]
"""From true area and area of the image, both in pixels of the original image (E,), to 0, 1 or 2."""
SIZE_NAMES = ("small", "medium", "large")
_COLUMNS = ("expression", "image", "true_area", "image_area")


def _by_coco_area(true_area_E: IntArray, _: IntArray) -> IntArray:
    return np.asarray(np.digitize(true_area_E, (32**2, 96**2)), np.int64)


def _by_share(true_area_E: IntArray, image_area_E: IntArray) -> IntArray:
    limits = [SIZE_SHARES["small"], SIZE_SHARES["medium"]]
    return np.asarray(np.digitize(true_area_E / np.maximum(image_area_E, 1), limits), np.int64)


SIZES: dict[str, SizeRule] = {"coco": _by_coco_area, "share": _by_share}
"""`coco`: below 32² and below 96² pixels, as COCO; `share`: below 2 % and 10 % of the image, as
`quality.json` has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """Columns over sentences, sorted by expression; every sentence is in them once."""

    expression: IntArray
    """(E,) rows of the manifest, rising."""
    image: IntArray
    """(E,) rows of the manifest."""
    true_area: IntArray
    """(E,) pixels of the truth in the original image."""
    image_area: IntArray
    """(E,) pixels of the original image."""
    intersection: dict[str, IntArray]
    """Per protocol (E,), pixels."""
    union: dict[str, IntArray]
    """Per protocol (E,), pixels."""

    def __post_init__(self) -> None:
        columns = [*(getattr(self, name) for name in _COLUMNS)]
        columns += [*self.intersection.values(), *self.union.values()]
        if self.intersection.keys() != self.union.keys() or {c.shape for c in columns} != {
            (len(self.expression),)
        }:
            raise ValueError(
                f"outcomes: expected columns of one length {len(self.expression)} and the same "
                f"protocols, found {sorted(self.intersection)} and {sorted(self.union)} of shapes "
                f"{sorted({c.shape for c in columns})}"
            )
        if (np.diff(self.expression) <= 0).any():
            raise ValueError("outcomes: expected rising expressions, each once")

    def __len__(self) -> int:
        return len(self.expression)

    @property
    def protocols(self) -> tuple[str, ...]:
        """Names of the protocols that were measured."""
        return tuple(self.intersection)

    def iou(self, protocol: str) -> npt.NDArray[np.float64]:
        """Give every sentence's IoU by one protocol, (E,)."""
        return iou_of(self.intersection[protocol], self.union[protocol])

    def select(self, chosen: npt.NDArray[Any]) -> "Outcomes":
        """Keep the sentences of a mask or of rising positions."""
        return Outcomes(
            **{name: getattr(self, name)[chosen] for name in _COLUMNS},
            intersection={name: column[chosen] for name, column in self.intersection.items()},
            union={name: column[chosen] for name, column in self.union.items()},
        )

    def sums(self, protocol: str) -> IoUSums:
        """Sum all sentences by one protocol."""
        return sum_up(self.intersection[protocol], self.union[protocol])


def join(parts: Sequence[Outcomes]) -> Outcomes:
    """Put the sentences of batches or ranks together, in whatever order they come.

    Raises:
        ValueError: If there is no part, two hold the same sentence, or their protocols differ.
    """
    if not parts:
        raise ValueError("join: expected at least one part, found none")
    names = parts[0].protocols
    if any(part.protocols != names for part in parts):
        raise ValueError(f"join: expected protocols {names} everywhere, found others")
    order = np.argsort(np.concatenate([part.expression for part in parts]), kind="stable")
    return Outcomes(
        **{
            name: np.concatenate([getattr(part, name) for part in parts])[order]
            for name in _COLUMNS
        },
        intersection={n: np.concatenate([p.intersection[n] for p in parts])[order] for n in names},
        union={n: np.concatenate([p.union[n] for p in parts])[order] for n in names},
    )


def figures(
    outcomes: Outcomes, protocol: str, *, sizes: str, resamples: int, seed: int
) -> dict[str, Any]:
    """Give every figure of one protocol, as JSON values; fractions in [0, 1].

    Returns:
        `overall_iou`, `mean_iou`, `precision_at` by threshold; `interval`: [low, high] by name of
        `METRICS`, or None for less than two images or no resamples; `by_size`: `sentences`,
        `overall_iou` and `mean_iou` of small, medium and large objects.
    """
    sums = outcomes.sums(protocol)
    found = None
    if resamples:
        found = intervals(ratios(outcomes, protocol), resamples=resamples, seed=seed)
    by_size = {}
    kind_E = SIZES[sizes](outcomes.true_area, outcomes.image_area)
    for number, name in enumerate(SIZE_NAMES):
        part = outcomes.select(kind_E == number).sums(protocol)
        by_size[name] = {
            "sentences": part.count,
            "overall_iou": part.overall_iou,
            "mean_iou": part.mean_iou,
        }
    return {
        "overall_iou": sums.overall_iou,
        "mean_iou": sums.mean_iou,
        "precision_at": {f"{limit:g}": sums.precision_at(limit) for limit in THRESHOLDS},
        "interval": None
        if found is None
        else {name: list(ends) for name, ends in zip(METRICS, found, strict=True)},
        "by_size": by_size,
    }


def ratios(outcomes: Outcomes, protocol: str) -> Ratios:
    """Give the metrics of `METRICS` as ratios of sums by image."""
    iou_E, one_E = outcomes.iou(protocol), np.ones(len(outcomes))
    reached = [(iou_E >= limit).astype(np.float64) for limit in THRESHOLDS]
    numerator = [outcomes.intersection[protocol].astype(np.float64), iou_E, *reached]
    denominator = [outcomes.union[protocol].astype(np.float64), *[one_E] * (1 + len(reached))]
    return by_image(outcomes.image, np.stack(numerator, 1), np.stack(denominator, 1))


def compare(
    this: Outcomes, other: Outcomes, protocol: str, *, resamples: int, seed: int
) -> dict[str, Difference] | None:
    """Compare two runs on the sentences that both have, by one protocol.

    Returns:
        A difference per name of `METRICS`; None if fewer than two images are common.
    """
    this, other = common(this, other)
    found = paired_differences(
        ratios(this, protocol), ratios(other, protocol), resamples=resamples, seed=seed
    )
    return None if found is None else dict(zip(METRICS, found, strict=True))


def common(this: Outcomes, other: Outcomes) -> tuple[Outcomes, Outcomes]:
    """Keep the sentences that both have."""
    return (
        this.select(np.isin(this.expression, other.expression)),
        other.select(np.isin(other.expression, this.expression)),
    )


def save_outcomes(path: Place, outcomes: Outcomes) -> None:
    """Write the columns as a compressed .npz, atomically; equal columns give equal bytes."""
    columns = {name: getattr(outcomes, name) for name in _COLUMNS}
    for name in outcomes.protocols:
        columns[f"{name}.intersection"] = outcomes.intersection[name]
        columns[f"{name}.union"] = outcomes.union[name]
    content = io.BytesIO()
    np.savez_compressed(content, format=np.asarray(FORMAT), **columns)
    atomic_write(path, content.getvalue())


def load_outcomes(path: Place) -> Outcomes:
    """Read what `save_outcomes` wrote.

    Raises:
        StoreError: If the file is missing, damaged or of another format.
    """
    try:
        # Opened here: numpy leaves the file open where it holds no zip.
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            if int(file["format"]) != FORMAT:
                raise StoreError(f"{path}: expected format {FORMAT}, found {int(file['format'])}")
            names = [n.removesuffix(".union") for n in file.files if n.endswith(".union")]
            return Outcomes(
                **{name: np.asarray(file[name], np.int64) for name in _COLUMNS},
                intersection={n: np.asarray(file[f"{n}.intersection"], np.int64) for n in names},
                union={n: np.asarray(file[f"{n}.union"], np.int64) for n in names},
            )
    except StoreError:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds
        raise StoreError(
            f"{path}: missing or damaged ({' '.join(str(error).split())}); run evaluate-student "
            f"again"
        ) from error
