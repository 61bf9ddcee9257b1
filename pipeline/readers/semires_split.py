"""A released SemiRES split, such as refcoco_1%_image.json.

{train, val, testA, testB}: entries {iid, bbox, cat_id, refs, mask_id}; `mask_id` is the ref_id.
Training entries hold all sentences of a ref, the others one each; they are joined again here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.data_config import DataConfig
from pipeline.errors import ManifestError
from pipeline.found_values import why
from pipeline.manifest import SPLITS
from pipeline.readers.base import Failure, Progress, Record, Source, read_json, texts
from pipeline.readers.refer import (
    DAMAGE,
    Instances,
    image_facts,
    plain_id,
    read_instances,
    read_refs,
)


def read_semires_split(
    config: DataConfig, _work: Path, _workers: int, _progress: Progress | None = None
) -> Source:
    """Open a released split.

    Shapes are not in the file: with `refs` and `instances` they are looked up by ref_id, else
    every object is unlabelled.

    Args:
        config: `annotations`, `images`, `image_pattern`, `refs` and `instances` are used.
        _work: Not used.
        _workers: Not used.
        _progress: Not used.

    Returns:
        One record per ref, in the order of the splits and of the file.

    Raises:
        ManifestError: If a file as a whole cannot be used.
    """
    if config.annotations is None or config.images is None:
        raise ManifestError("expected annotations and images, found one missing")
    document = read_json(config.annotations)
    if (
        not isinstance(document, dict)
        or not set(document) <= set(SPLITS)
        or not all(isinstance(entries, list) for entries in document.values())
    ):
        raise ManifestError(
            f"expected a released split with keys of {', '.join(SPLITS)} in {config.annotations}, "
            "found another structure"
        )
    instances = read_instances(config.instances) if config.instances else None
    refs = read_refs(config.refs) if config.refs else []
    shapes = {ref["ref_id"]: ref for ref in refs if isinstance(ref.get("ref_id"), int)}
    items = _records(document, shapes, instances, config)
    return Source(image_root=config.images, mask_root=config.images, items=items)


def _records(
    document: dict[str, Any],
    shapes: dict[Any, dict[str, Any]],
    instances: Instances | None,
    config: DataConfig,
) -> Iterator[Record | Failure]:
    name = config.annotations.name if config.annotations else ""
    for split in SPLITS:
        joined: dict[tuple[int, str], list[str]] = {}
        for row, entry in enumerate(document.get(split, [])):
            try:
                key = (int(entry["iid"]), plain_id(entry["mask_id"]))
                joined.setdefault(key, []).extend(texts(entry["refs"]))
            except DAMAGE as error:
                reason = (
                    "expected an entry with iid, refs and mask_id, found another "
                    f"({type(error).__name__}: {why(error)})"
                )
                yield Failure(item=f"{name}: {split}[{row}]", file=name, reason=reason)
        for (image_number, ref_id), sentences in joined.items():
            where = f"{name}: {split} ref {ref_id}"
            try:
                shape = _shape(ref_id, image_number, shapes, instances)
                file_name, size = image_facts(instances, image_number, config.image_pattern)
                yield Record(
                    image=file_name,
                    image_id=str(image_number),
                    object_id=ref_id,
                    category=_category(shape, instances),
                    split=split,
                    expressions=tuple(sentences),
                    segmentation=shape["segmentation"] if shape else None,
                    size=size,
                    where=where,
                )
            except DAMAGE as error:
                reason = f"the shape is not found ({why(error)})"
                yield Failure(item=where, file=name, reason=reason)


def _shape(
    ref_id: str,
    image_number: int,
    shapes: dict[Any, dict[str, Any]],
    instances: Instances | None,
) -> dict[str, Any] | None:
    """Give the COCO annotation of a ref, None where no shapes were given."""
    if instances is None:
        return None
    ref = shapes.get(int(ref_id))
    if ref is None or int(ref["image_id"]) != image_number:
        raise ValueError(f"no ref {ref_id} of image {image_number} in the refs file")
    return instances.annotations[int(ref["ann_id"])]


def _category(shape: dict[str, Any] | None, instances: Instances | None) -> str:
    if shape is None or instances is None:
        return ""
    return instances.categories.get(shape.get("category_id", -1), "")
