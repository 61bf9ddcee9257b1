"""Shell: the rows of one store: candidates, a teacher's predictions or labels."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.candidates import CandidateReader
from pipeline.errors import ItemError, StoreError
from pipeline.manifest import Manifest, load_manifest
from pipeline.places import Place
from pipeline.records import content_fingerprint, read_done, records_folder, stored_plan
from pipeline.run_contents import (
    one_line,
    plan_path,
    read_arrays,
    read_layout,
    run_dir_of,
    verb_of,
)
from pipeline.store import open_store

State = Literal["written", "failed", "unwritten"]

# Array that only this kind has; columns of one number a row, the manifest's row first.
_KINDS = {
    "candidates": ("cells", ("image", "num_candidates", "size")),
    "teacher": ("logit", ("expression", "valid", "confidence")),
    "labels": ("mask", ("expression", "source", "size", "score")),
}


def kind_of(store: Place) -> str:
    """Tell what a store holds: candidates, teacher or labels.

    Raises:
        StoreError: If it is none of them, or damaged.
    """
    names = sorted(read_arrays(store))
    for kind, (marker, _) in _KINDS.items():
        if marker in names:
            return kind
    raise StoreError(f"{store}: neither candidates, teacher nor labels; it holds {names}")


def manifest_of(store: Place) -> Manifest:
    """Load the manifest of the run that a store lies in."""
    folder = run_dir_of(store)
    if folder is None:
        raise StoreError(f"{store}: no manifest/ in any folder above it")
    return load_manifest(folder / "manifest")


class StoreRows:
    """The rows of one store and the manifest they refer to.

    Keeps the small columns of one shard in memory: zarr costs about 1 ms per access.
    """

    def __init__(self, store: Place) -> None:
        self.store = store
        self.kind = kind_of(store)
        self.manifest = manifest_of(store)
        self._arrays = read_arrays(store)
        self._columns = _KINDS[self.kind][1]
        self._shard = -1
        self._scalars: dict[str, npt.NDArray[Any]] = {}
        self._candidates = CandidateReader(store)
        with one_line(str(store), store):
            self._rows = int(self._arrays[self._columns[0]].shape[0])
            self._shard_rows = int(self._arrays[self._columns[0]].chunks[0])
            self._strategies: Any = open_store(store).attrs.get("strategies", [])

    def __len__(self) -> int:
        return self._rows

    def check(self, row: int) -> None:
        """Refuse a row that does not exist."""
        if not 0 <= row < len(self):
            raise StoreError(f"{self.store}: rows go from 0 to {len(self) - 1}, asked for {row}")

    def state(self, row: int) -> State:
        """Tell whether a row was written, failed, or is not written yet."""
        if not self._load(row // self._shard_rows, row) or self.scalar("row", row) < 0:
            return "unwritten"
        if self.kind == "teacher":
            return "written" if self.scalar("valid", row) else "failed"
        verdict = "num_candidates" if self.kind == "candidates" else "source"
        return "written" if self.scalar(verdict, row) >= 0 else "failed"

    def require_written(self, row: int) -> State:
        """Give the state of a row, `written` or `failed`.

        Raises:
            StoreError: If it does not exist, cannot be read, or is not written yet.
        """
        self.check(row)
        state = self.state(row)
        if state == "unwritten":
            raise StoreError(
                f"{self.store}: row {row} is not written yet; run '{verb_of(self.store)}'"
            )
        return state

    def scalar(self, name: str, row: int) -> Any:
        """Give a small value of a row; "row" is the manifest's image or expression."""
        self._load(row // self._shard_rows, row)
        column = self._scalars[self._columns[0] if name == "row" else name]
        return column[row % self._shard_rows]

    def array(self, name: str, row: int) -> npt.NDArray[Any]:
        """Give a row of a large array."""
        with self.guarded(row):
            return np.asarray(self._arrays[name][row])

    def image(self, row: int) -> int:
        """Give the manifest's image of a row."""
        place = int(self.scalar("row", row))
        with self.guarded(row):
            if self.kind == "candidates":
                self.manifest.image_path[place]
                return place
            return int(self.manifest.expression_image[place])

    def candidates(self, row: int) -> Any:
        """Give the candidates of a written row."""
        with self.guarded(row):
            return self._candidates.read(row)

    def mask_size(self, row: int) -> tuple[int, int]:
        """Give (H, W) of the masks of a written row of candidates or labels."""
        height, width = (int(side) for side in self.scalar("size", row))
        return height, width

    def label(self, row: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32], str]:
        """Give mask (H, W), weight (H, W) in [0, 1] and strategy of a written row."""
        height, width = self.mask_size(row)
        packed = self.array("mask", row)[:height]
        weight = self.array("weight", row)[:height, :width]
        with self.guarded(row):
            mask = np.unpackbits(packed, axis=1, count=width).astype(np.bool_)
            source = str(self._strategies[int(self.scalar("source", row))])
            return mask, np.asarray(weight, np.float32) / np.float32(255), source

    def sentence(self, row: int) -> str:
        """Give the expression of a row of a teacher's predictions or of labels."""
        with self.guarded(row):
            return self.manifest.expression_text[int(self.scalar("row", row))]

    def truth(self, row: int, canvas: int) -> npt.NDArray[np.bool_] | None:
        """Give the true mask of a row's object at a canvas; None where it is not known."""
        with self.guarded(row):
            expression = int(self.scalar("row", row))
            try:
                return self.manifest.truth(self.manifest.expression_object[expression], canvas)
            except ItemError:  # it only serves comparing
                return None

    @cached_property
    def sources(self) -> dict[str, "StoreRows"]:
        """Open what labels were made of, by `teacher` and `candidates`.

        A store that is gone, or was made anew since, is left out: it is not what the labels show.
        """
        run_dir = run_dir_of(self.store)
        if self.kind != "labels" or run_dir is None or not plan_path(self.store).exists():
            return {}
        inputs = stored_plan(self.store, verb_of(self.store))["plan"].get("inputs", {})
        places = {"teacher": self.store.parent / "teacher.zarr"}
        places["candidates"] = run_dir / "candidates.zarr"
        return {
            kind: StoreRows(place)
            for kind, place in places.items()
            if plan_path(place).exists()
            and content_fingerprint(stored_plan(place, verb_of(place))) == inputs.get(kind)
        }

    @contextmanager
    def guarded(self, row: int) -> Iterator[None]:
        """Turn damage met on the way into one StoreError that names store and row."""
        with one_line(f"{self.store}: row {row}", self.store):
            yield

    def _load(self, shard: int, row: int) -> bool:
        """Read a shard's small columns, unless at hand; False if the shard is not done."""
        if shard != self._shard:
            scalars: dict[str, npt.NDArray[Any]] = {}
            if self._is_done(shard):
                rows = slice(shard * self._shard_rows, (shard + 1) * self._shard_rows)
                with self.guarded(row):
                    scalars = {name: np.asarray(self._arrays[name][rows]) for name in self._columns}
            self._shard, self._scalars = shard, scalars
        return bool(self._scalars)

    def _is_done(self, shard: int) -> bool:
        """Go by the done record; a store that was copied without its records counts as done."""
        if not (records_folder(self.store) / "plan.json").exists():
            return True
        return read_done(self.store, shard, read_layout(self.store).fingerprint) is not None
