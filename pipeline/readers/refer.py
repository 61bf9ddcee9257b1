"""RefCOCO, RefCOCO+ and RefCOCOg in REFER's files: refs(unc).p and COCO's instances.json."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data_config import DataConfig
from pipeline.errors import ManifestError
from pipeline.found_values import shown, why
from pipeline.readers.base import Failure, Progress, Record, Source, read_json, texts
from pipeline.readers.pickles import read_plain_pickle

DAMAGE = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
"""What looking into another structure than was expected raises; int(inf) is an ArithmeticError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instances:
    """What is needed of COCO's instances.json, by id."""

    images: dict[int, dict[str, Any]]
    annotations: dict[int, dict[str, Any]]
    categories: dict[int, str]


def read_refer(
    config: DataConfig, _work: Path, _workers: int, _progress: Progress | None = None
) -> Source:
    """Open a data set in REFER's format.

    The file name of an image comes from instances.json; `file_name` of a ref is not used, since
    in the published files it carries an annotation suffix.

    Args:
        config: `annotations`, `instances`, `images`, `sentence` and `image_pattern` are used.
        _work: Not used.
        _workers: Not used.
        _progress: Not used.

    Returns:
        One record per ref, in the order of the refs.

    Raises:
        ManifestError: If a file as a whole cannot be used.
    """
    if config.annotations is None or config.instances is None or config.images is None:
        raise ManifestError("expected annotations, instances and images, found one missing")
    refs = read_refs(config.annotations)
    items = _records(refs, read_instances(config.instances), config)
    return Source(image_root=config.images, mask_root=config.images, items=items)


def read_refs(path: Path) -> list[dict[str, Any]]:
    """Read the list of refs from a .json file, or from a pickle that nothing is executed of.

    Raises:
        ManifestError: If it is not a list of mappings.
    """
    refs = read_json(path) if path.suffix == ".json" else read_plain_pickle(path)
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise ManifestError(f"expected a list of refs in {path}, found {type(refs).__name__}")
    return refs


def read_instances(path: Path) -> Instances:
    """Read COCO's instances.json.

    Raises:
        ManifestError: If a section is missing or has no ids.
    """
    document = read_json(path)
    try:
        return Instances(
            images={int(image["id"]): dict(image) for image in document["images"]},
            annotations={int(shape["id"]): dict(shape) for shape in document["annotations"]},
            categories={int(kind["id"]): str(kind["name"]) for kind in document["categories"]},
        )
    except DAMAGE as error:
        raise ManifestError(
            f"expected COCO's images, annotations and categories in {path}, found another "
            f"structure ({type(error).__name__}: {why(error)})"
        ) from error


def _records(
    refs: list[dict[str, Any]], instances: Instances, config: DataConfig
) -> Iterator[Record | Failure]:
    name = config.annotations.name if config.annotations else ""
    for row, ref in enumerate(refs):
        where = f"{name}: ref {shown(ref['ref_id']) if 'ref_id' in ref else f'at position {row}'}"
        try:
            yield _record(ref, instances, config, where)
        except DAMAGE as error:
            reason = (
                "expected a ref as REFER has it, found another structure "
                f"({type(error).__name__}: {why(error)})"
            )
            yield Failure(item=where, file=name, reason=reason)


def _record(
    ref: dict[str, Any], instances: Instances, config: DataConfig, where: str
) -> Record | Failure:
    image_number = int(ref["image_id"])
    shape = instances.annotations.get(int(ref["ann_id"]))
    if shape is None or int(shape["image_id"]) != image_number:
        found = (
            "no such annotation" if shape is None else f"one of image {shown(shape['image_id'])}"
        )
        reason = (
            f"expected annotation {shown(ref['ann_id'])} of image {image_number} in "
            f"instances.json, found {found}; use the instances.json of the same data set"
        )
        return Failure(item=where, file="", reason=reason)
    file_name, size = image_facts(instances, image_number, config.image_pattern)
    return Record(
        image=file_name,
        image_id=str(image_number),
        object_id=plain_id(ref["ref_id"]),
        category=instances.categories.get(int(shape["category_id"]), ""),
        split=str(ref["split"]),
        expressions=texts([sentence[config.sentence] for sentence in ref["sentences"]]),
        segmentation=shape["segmentation"],
        size=size,
        where=where,
    )


def image_facts(
    instances: Instances | None, image_number: int, pattern: str
) -> tuple[str, tuple[int, int] | None]:
    """Give the file name and claimed (H, W) of an image; the pattern stands in for a missing one.

    Args:
        instances: COCO's images, or None.
        image_number: COCO's image id.
        pattern: File name with one %-number.

    Returns:
        File name, and (H, W) in pixels or None.
    """
    image = instances.images.get(image_number) if instances else None
    if image is None:
        return pattern % image_number, None
    size = (int(image["height"]), int(image["width"])) if "height" in image else None
    name = image.get("file_name") or pattern % image_number
    if not isinstance(name, str):
        raise TypeError(f"file_name is {shown(name)}")
    return name, size


def plain_id(value: Any) -> str:
    """Give an id that a file states, text or an integer, as text.

    Raises:
        TypeError: If it is anything else.
    """
    if not isinstance(value, str | int):
        raise TypeError(f"expected text or an integer as an id, found {shown(value)}")
    return str(value)
