"""The `data:` section of stages.yaml: which data set, how it is read, who is labelled."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.errors import ConfigError

_READS: dict[str, tuple[str, ...]] = {
    "refer": ("annotations", "instances", "images"),
    "semires-split": ("annotations", "images"),
    "jsonl": ("annotations",),
    "scenes": (),
}
_OPTIONAL: dict[str, tuple[str, ...]] = {
    "refer": ("links_into",),
    "semires-split": ("instances", "refs", "links_into"),
    "jsonl": ("images", "links_into"),
    "scenes": (),
}
_PATTERN = re.compile(r"(?:[^%]|%%)*%0?[0-9]{0,2}d(?:[^%]|%%)*")
"""One number of at most 99 digits: "%999999999d" would ask for a GiB."""
_PATHS = ("annotations", "instances", "refs", "images", "links_into")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledConfig:
    """Which training images are labelled; with all three off, none is."""

    ratio: float | None = None
    """Share of the training images that have the masks of all their objects, drawn by the released
    rule; in (0, 1]. 1.0 takes all of them, as for masks of one's own; 0.1 hides nine in ten, for
    experiments whose truth is known. Other images give another draw."""
    seed: int = 0
    """Seed of the draw, at least 0; the released splits use 0."""
    ids: tuple[str, ...] | None = None
    """The image ids themselves: of JSON lines, `image` as it stands there."""
    file: Path | None = None
    """File of image ids: one a line, a JSON list, or a released split such as
    `refcoco_1%_image.json`, whose training images are meant."""

    def __post_init__(self) -> None:
        given = [name for name in ("ratio", "ids", "file") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(
                f"expected one of ratio, ids and file, found {' and '.join(given)}; set the others "
                f"to null, as by --set data.labelled.{given[0]}=null"
            )
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ConfigError(f"expected ratio in (0, 1], found {self.ratio!r}")
        if self.seed < 0:
            raise ConfigError(f"expected seed of at least 0, found {self.seed}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """A data set and how its manifest is made."""

    reader: Literal["refer", "semires-split", "jsonl", "scenes"]
    """Format: RefCOCO's, a released SemiRES split, one's own lines, or the embedded data set."""
    annotations: Path | None = None
    """The referring annotations: refs(unc).p or refs.json (refer), split JSON (semires-split), or
    JSON lines (jsonl)."""
    images: Path | None = None
    """Folder of the images (refer, semires-split, jsonl, for which None is the annotations'
    folder)."""
    links_into: tuple[Path, ...] = ()
    """Folders that links among images and masks may lead into (all but scenes): blobs beside a
    hub's snapshot, a cache of DVC or git-annex, the disk that a folder was linked together from. A
    link that leads elsewhere is refused. Allows and decides nothing: the same images give the same
    manifest."""
    instances: Path | None = None
    """COCO instances.json: shapes, sizes, file names (refer; optional for semires-split)."""
    refs: Path | None = None
    """refs(unc).p that a split's mask_id refers to (semires-split, together with `instances`)."""
    sentence: Literal["sent", "raw"] = "sent"
    """Field of a sentence (refer): cleaned, as the released training text, or as written."""
    image_pattern: str = "COCO_train2014_%012d.jpg"
    """File name by image number, `%d` or the like, where the annotations give none (refer,
    semires-split)."""
    scenes: dict[str, int] = field(default_factory=lambda: {"train": 64, "val": 16})
    """Images to generate by split: train, val, testA, testB (scenes); each at least 0."""
    scenes_seed: int = 0
    """Seed of the generated images (scenes), at least 0."""
    labelled: LabelledConfig = field(default_factory=LabelledConfig)
    """Which training images are labelled."""
    max_words: int = 200
    """Expressions of more words are recorded as failures; at least 1."""
    drop_leaking: bool = False
    """Leave out the training objects of images that val or test also hold (RefCOCOg google);
    off: such a data set is refused."""

    def __post_init__(self) -> None:
        needed, optional = _READS[self.reader], _OPTIONAL[self.reader]
        for name in needed:
            if getattr(self, name) is None:
                raise ConfigError(
                    f"reader {self.reader!r} needs the path {name!r}, found none; give it, as by "
                    f"--set data.{name}=PATH"
                )
        for name in _PATHS:
            if getattr(self, name) not in (None, ()) and name not in needed + optional:
                raise ConfigError(f"reader {self.reader!r} does not read {name!r}; remove it")
        if self.reader == "semires-split" and (self.refs is None) != (self.instances is None):
            raise ConfigError("expected refs and instances together, found one of them")
        if not _PATTERN.fullmatch(self.image_pattern):
            raise ConfigError(
                f"expected image_pattern with one number such as '%012d', found "
                f"{self.image_pattern!r}"
            )
        self._check_numbers()

    def _check_numbers(self) -> None:
        if self.max_words < 1:
            raise ConfigError(f"expected max_words of at least 1, found {self.max_words}")
        if self.scenes_seed < 0:
            raise ConfigError(f"expected scenes_seed of at least 0, found {self.scenes_seed}")
        unknown = sorted(set(self.scenes) - {"train", "val", "testA", "testB"})
        if unknown:
            raise ConfigError(f"expected splits as keys of scenes, found {unknown[0]!r}")
        if min(self.scenes.values(), default=0) < 0 or not sum(self.scenes.values()):
            raise ConfigError(f"expected counts of scenes from 0 and some, found {self.scenes}")

    def input_files(self) -> dict[str, Path]:
        """Give the annotation files that decide the manifest, by field name."""
        files = {name: getattr(self, name) for name in ("annotations", "instances", "refs")}
        files["labelled.file"] = self.labelled.file
        return {name: path for name, path in files.items() if path is not None}
