"""Shell: a teacher's predictions, image by image, beside the candidates of the image.

Shape legend: E expressions of one image, H and W pixels, h and w the network's stride.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.candidates import CandidateReader, Candidates, no_candidates
from pipeline.cells import BoolArray, Cells
from pipeline.errors import ItemError
from pipeline.images import canvas_size
from pipeline.manifest import Manifest, load_manifest
from pipeline.paths import RunPaths
from pipeline.places import Place
from refine.evidence import Evidence, FloatArray, ImageEvidence, gather, gather_image
from refine.probability import Context, ProbabilityConfig, with_context
from refine.teacher_store import TeacherReader
from refine.upsample import sigmoid, upsample_align_corners

_PROBLEMS = {
    (True, True): None,
    (True, False): "the teacher's logits are not finite; run 'predict-teacher' again with --force",
    (False, True): "the teacher could not predict it; see its failures",
    (False, False): "the teacher could not predict it; see its failures",
}
READ_AT_ONCE = 16
"""Images whose candidates are read in one access, some tens of megabytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One expression as the teacher sees it."""

    row: int
    """Row of the teacher's store."""
    expression: int
    """Row of the manifest."""
    problem: str | None
    """Why there can be no label, in one line; None where there can."""
    own_hw: npt.NDArray[np.float16]
    """The teacher's logit margin, (h, w)."""
    margins: dict[str, FloatArray]
    """Per context that was asked for the margin with it, before slope and bias, (h, w)."""
    confidence_rank: float
    """Share of the store's predictions of which the teacher is less sure."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The rows of one teacher store; opens what it needs at first use, in each process."""

    run_dir: Place
    teacher: Place
    contexts: tuple[Context, ...] = ("none",)
    """The contexts in which predictions are wanted."""

    def by_image(self, rows: range) -> Iterator[tuple[int, ImageEvidence, list[Prediction]]]:
        """Give the predictions of a run of rows: manifest row of the image, candidates, rows.

        Rows of an image that lie outside of the run are read too where the context needs them, so
        that the answer does not depend on where shards begin.

        Raises:
            StoreError: If a store is missing or damaged.
        """
        first, last = rows.start, rows.stop
        if self.contexts != ("none",):
            first, last = self._whole_images(rows)
        columns = self.reader.read(range(first, last))
        images = self.manifest.expression_image[columns["expression"]]
        cells = self._cells_of(images)
        for image, group in groupby(range(last - first), key=lambda at: int(images[at])):
            at = np.fromiter(group, np.int64)
            wanted = {int(k) for k in at if rows.start <= first + k < rows.stop}
            if wanted:
                found = cells(image)
                problem = self._misfit(image, found)
                predictions = self._with_context(columns, at, wanted, first, problem)
                yield image, gather_image(found), predictions

    def see(
        self, image: ImageEvidence, prediction: Prediction, probability: ProbabilityConfig
    ) -> Evidence:
        """Bring a prediction to pixels: P is the teacher's own mask, p as `probability` makes it.

        Raises:
            ValueError: If the probability is not finite or of another size.
        """
        own_HW = upsample_align_corners(prediction.own_hw, image.cells.size)
        margin_HW = own_HW
        if not probability.is_own:
            slope, bias = np.float32(probability.slope), np.float32(probability.bias)
            margin_hw = slope * prediction.margins[probability.context] + bias
            margin_HW = upsample_align_corners(margin_hw, image.cells.size)
        return gather(image, sigmoid(margin_HW), own_HW > 0, prediction.confidence_rank)

    def truth(self, prediction: Prediction, canvas: int) -> BoolArray | None:
        """Give the true mask of a prediction's object in canvas geometry; None if unknown.

        A truth that cannot be decoded is unknown: it only serves measuring.
        """
        object_row = int(self.manifest.expression_object[prediction.expression])
        try:
            return self.manifest.truth(object_row, canvas)
        except ItemError:
            return None

    def _cells_of(self, images: npt.NDArray[np.int32]) -> Callable[[int], Cells]:
        """Read the cells of rising images; an image whose candidates failed has none of them."""
        rows = np.searchsorted(self._candidate_images, np.unique(images))
        found: dict[int, Candidates | None] = {}

        def cells(image: int) -> Cells:
            row = int(np.searchsorted(self._candidate_images, image))
            if row not in found:
                found.clear()
                ahead = rows[np.searchsorted(rows, row) :][:READ_AT_ONCE]
                gaps = np.flatnonzero(np.diff(ahead) > 2)  # not worth reading across
                last = int(ahead[gaps[0]] if len(gaps) else ahead[-1])
                run = range(row, last + 1)
                found.update(zip(run, self._candidates.read_run(run), strict=True))
            candidates = found[row]
            if candidates is not None:
                return candidates.cells
            size = self.manifest.size_of(image)
            return no_candidates(canvas_size(size, self._candidates.canvas)).cells

        return cells

    def _misfit(self, image: int, cells: Cells) -> str | None:
        """Say what is wrong with candidates that are not of the image's size."""
        expected = canvas_size(self.manifest.size_of(image), self._candidates.canvas)
        if cells.size == expected:
            return None
        return (
            f"its candidates are of size {cells.size}, expected {expected}; "
            "make them again with 'sam-candidates --force'"
        )

    def _with_context(
        self,
        columns: dict[str, Any],
        at: npt.NDArray[np.int64],
        wanted: set[int],
        first: int,
        problem: str | None,
    ) -> list[Prediction]:
        own_Ehw, known_E = columns["logit"][at], columns["valid"][at].astype(np.bool_)
        finite_E = np.isfinite(own_Ehw).all(axis=(1, 2))
        valid_E = known_E & finite_E
        expression_E = columns["expression"][at]
        margins = {context: own_Ehw.astype(np.float32) for context in self.contexts}
        object_E = self.manifest.expression_object[expression_E[valid_E]]
        for context, margin_Ehw in margins.items():
            margin_Ehw[valid_E] = with_context(margin_Ehw[valid_E], object_E, context)
        return [
            Prediction(
                row=first + int(k),
                expression=int(expression_E[place]),
                problem=problem or _PROBLEMS[bool(known_E[place]), bool(finite_E[place])],
                own_hw=own_Ehw[place],
                margins={context: margin[place] for context, margin in margins.items()},
                confidence_rank=float(self._rank[first + k]),
            )
            for place, k in enumerate(at)
            if int(k) in wanted
        ]

    def _whole_images(self, rows: range) -> tuple[int, int]:
        """Stretch a run of rows to the first and last row of its images."""
        if not rows:
            return rows.start, rows.stop
        images = self.manifest.expression_image[self.reader.scalars()["expression"]]
        first = np.searchsorted(images, images[rows.start], side="left")
        last = np.searchsorted(images, images[rows.stop - 1], side="right")
        return int(first), int(last)

    @cached_property
    def _rank(self) -> npt.NDArray[np.float64]:
        scalars = self.reader.scalars()
        rank = np.ones(len(scalars["valid"]))
        known = np.flatnonzero(scalars["valid"])
        order = np.argsort(scalars["confidence"][known], kind="stable")  # ties: the earlier row
        rank[known[order]] = np.arange(len(known)) / max(len(known), 1)
        return rank

    @cached_property
    def manifest(self) -> Manifest:
        """The data set."""
        return load_manifest(RunPaths(self.run_dir).manifest)

    @cached_property
    def reader(self) -> TeacherReader:
        """The teacher's store."""
        return TeacherReader(self.teacher)

    @cached_property
    def _candidate_images(self) -> Any:
        return self.manifest.images_of("train")

    @cached_property
    def _candidates(self) -> CandidateReader:
        return CandidateReader(RunPaths(self.run_dir).candidates)
