"""Shell: look into the rows of a store: what they hold, and pictures of them."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.candidates import CandidateReader
from pipeline.cells import masks_of
from pipeline.drawing import LABEL_COLOUR, Picture, cell_colours, heat, overlay, sheet
from pipeline.errors import StoreError
from pipeline.images import read_image
from pipeline.manifest import Manifest, load_manifest
from pipeline.places import Place
from pipeline.records import atomic_write, read_done, records_folder
from pipeline.run_contents import one_line, read_arrays, read_layout, run_dir_of, verb_of
from pipeline.store import open_store

Panel = tuple[Picture, str]
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


def draw_rows(store: Place, rows: list[int], panel_px: int = 320) -> Picture:
    """Draw rows of a store, four panels to a line."""
    opened = StoreRows(store)
    panels = [panel for row in rows for panel in draw_row(opened, row)]
    blank = (np.full((8, 8, 3), 250, np.uint8), "")
    width = min(4, len(panels))
    panels += [blank] * (-len(panels) % width)
    lines = [panels[start : start + width] for start in range(0, len(panels), width)]
    return sheet(lines, panel_px)


def save_rows(store: Place, rows: list[int], path: Place) -> None:
    """Draw rows of a store into a PNG file; its folder is made if need be."""
    buffer = io.BytesIO()
    Image.fromarray(draw_rows(store, rows)).save(buffer, "PNG")
    with writing(path):
        atomic_write(path, buffer.getvalue())


@contextmanager
def writing(path: Place) -> Iterator[None]:
    """Turn what goes wrong while `path` is written into one StoreError."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror})") from error


def draw_row(opened: StoreRows, row: int) -> list[Panel]:
    """Draw one row: the image, and what the store says of it.

    Raises:
        StoreError: If the row does not exist, cannot be read, or is not written yet.
        ItemError: If its image cannot be read.
    """
    return DRAWERS[opened.kind](opened, row, opened.require_written(row))


def _draw_candidates(opened: StoreRows, row: int, state: State) -> list[Panel]:
    image = opened.image(row)
    name = opened.manifest.image_path[image]
    if state == "failed":
        raise StoreError(f"{opened.store}: row {row} ({name}) failed; no candidates")
    found = opened.candidates(row)
    picture = _picture(opened.manifest, image, max(found.cells.size))
    cells = f"{found.cells.num_candidates} candidates, {found.cells.num_cells - 1} cells"
    panels: list[Panel] = [(picture, name), (cell_colours(picture, found.cells.cells), cells)]
    best = np.argsort(-found.predicted_iou, kind="stable")[:2]
    for number, mask in zip(best, masks_of(found.cells)[best], strict=True):
        caption = f"candidate {number}, {found.area[number]} px\npredicted IoU "
        panels.append(
            (overlay(picture, mask, LABEL_COLOUR), f"{caption}{found.predicted_iou[number]:.2f}")
        )
    return panels


def _draw_teacher(opened: StoreRows, row: int, state: State) -> list[Panel]:
    picture, sentence = _sentence(opened, row)
    if state == "failed":
        return [(picture, sentence), (picture, "failed: no prediction")]
    logit = np.asarray(opened.array("logit", row), np.float32)
    prob = Image.fromarray(1 / (1 + np.exp(-logit))).resize(
        (picture.shape[1], picture.shape[0]), Image.Resampling.BILINEAR
    )
    confidence = float(opened.scalar("confidence", row))
    name = f"teacher, confidence {confidence:.2f} (store {opened.store.parent.name})"
    return [(picture, sentence), (heat(picture, np.asarray(prob)), name)]


def _draw_labels(opened: StoreRows, row: int, state: State) -> list[Panel]:
    picture, sentence = _sentence(opened, row)
    if state == "failed":
        reason = f"failed: no label ({opened.store.parent.name})"
        return [(picture, sentence), (picture, reason)]
    mask, weight, source = opened.label(row)
    picture = np.asarray(Image.fromarray(picture).resize(mask.shape[::-1]), np.uint8)
    score = float(opened.scalar("score", row))
    return [
        (picture, sentence),
        (overlay(picture, mask, LABEL_COLOUR), f"{source}, score {score:.2f}"),
        (heat(picture, weight), f"weight, mean {weight.mean():.2f}"),
    ]


DRAWERS: dict[str, Callable[[StoreRows, int, State], list[Panel]]] = {
    "candidates": _draw_candidates,
    "teacher": _draw_teacher,
    "labels": _draw_labels,
}
"""How each kind of store draws a row."""


def _sentence(opened: StoreRows, row: int) -> Panel:
    picture = _picture(opened.manifest, opened.image(row), 640)
    return picture, opened.manifest.expression_text[int(opened.scalar("row", row))]


def _picture(manifest: Manifest, image: int, canvas: int) -> Picture:
    return read_image(manifest.image_file(image), canvas=canvas, size=manifest.size_of(image))
