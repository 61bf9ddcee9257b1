"""Check what a reader yields, object by object; what cannot be used becomes a failure."""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.columns import file_sha256
from pipeline.containment import LinkError, check_inside, check_regular
from pipeline.data_config import DataConfig
from pipeline.errors import ItemError
from pipeline.found_values import why
from pipeline.images import ImageFacts, read_size
from pipeline.manifest import SPLITS
from pipeline.readers.base import Failure, Progress, Record, Source
from pipeline.segmentation import encode_segmentation

MAX_LETTERS_PER_WORD = 20
"""An expression may have max_words times this many characters; for scripts without spaces."""

MAX_OUTLINE_NUMBERS = 1_000_000
"""Coordinates of all polygons of an object; real ones have some hundred. A pickle can name the
same polygon a million times in a few bytes."""

MAX_REASON = 500
"""Characters of a failure's reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Referred:
    """One object that passed every check."""

    image: str
    """Path relative to the image root."""
    image_id: str
    """Name of the image."""
    image_sha256: str
    """sha256 of the image file's bytes, hex."""
    size: tuple[int, int]
    """Upright (H, W) of the image file, pixels."""
    object_id: str
    """Name of the object."""
    category: str
    """Name of its category, "" if unknown."""
    split: str
    """One of `SPLITS`."""
    expressions: tuple[str, ...]
    """At least one, none empty."""
    rle: bytes
    """Compressed COCO counts at `size`; empty = no truth known."""


@dataclass(slots=True)
class Collection:
    """What has been read so far."""

    objects: list[Referred] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    images: dict[str, ImageFacts | None] = field(default_factory=dict)
    """By path; None = the file cannot be used."""
    image_sha256: dict[str, str] = field(default_factory=dict)
    """By path, of usable files."""
    image_ids: dict[str, str] = field(default_factory=dict)
    """By path."""
    object_ids: set[str] = field(default_factory=set)
    images_of: dict[str, set[str]] = field(default_factory=dict)
    """Split to usable images."""


def collect(
    source: Source, config: DataConfig, *, limit: int | None, progress: Progress | None
) -> Collection:
    """Read a data set and check every object, image header, expression and shape.

    Args:
        source: The opened data set.
        config: `max_words` and `links_into` are used.
        limit: Images to keep of every split, the first ones; None keeps all.
        progress: Told of every object, with the number read so far.

    Returns:
        Usable objects in the order of the annotations, and everything that was left out or
        converted.
    """
    collection = Collection()
    for number, item in enumerate(source.items, start=1):
        if isinstance(item, Failure):
            collection.failures.append(item)
        else:
            try:
                _add(collection, item, source, config, limit)
            except ItemError as error:
                _fail(collection, item, why(error, MAX_REASON), leads_to=_leads_to(error))
        if progress is not None:
            progress("objects", number)
    return collection


def _add(
    collection: Collection, record: Record, source: Source, config: DataConfig, limit: int | None
) -> None:
    """Add one object, or raise ItemError; one on an unusable image goes with its image."""
    _check_names(collection, record)
    kept = collection.images_of.setdefault(record.split, set())
    if limit is not None and len(kept) >= limit and record.image not in kept:
        return
    facts = _facts(collection, record, source, config)
    if facts is None:
        return
    _check_size(record, facts)
    rle = b""
    if record.segmentation is not None:
        _check_shape(record, source, config)
        rle = encode_segmentation(record.segmentation, facts.size, source.mask_root)
    elif record.split != "train":
        raise ItemError(f"expected a segmentation, found none; {record.split} needs the truth")
    expressions = _expressions(collection, record, config.max_words)
    if not expressions:
        raise ItemError("expected at least one usable expression, found none")
    if record.object_id in collection.object_ids:
        raise ItemError(f"expected every object id once, found {record.object_id!r} again")
    collection.object_ids.add(record.object_id)
    kept.add(record.image)
    collection.objects.append(
        Referred(
            image=record.image,
            image_id=record.image_id,
            image_sha256=collection.image_sha256[record.image],
            size=facts.size,
            object_id=record.object_id,
            category=record.category,
            split=record.split,
            expressions=expressions,
            rle=rle,
        )
    )


def _check_names(collection: Collection, record: Record) -> None:
    names = (record.image, record.image_id, record.object_id, record.category)
    if not all(map(_storable, names)):
        raise ItemError("expected names in Unicode, found half a surrogate pair")
    if record.split not in SPLITS:
        raise ItemError(f"expected a split of {', '.join(SPLITS)}, found {record.split!r:.60}")
    # Otherwise one picture could be labelled under one id and unlabelled under the other.
    image_id = collection.image_ids.setdefault(record.image, record.image_id)
    if image_id != record.image_id:
        raise ItemError(
            f"expected one id per image file, found {image_id!r} and {record.image_id!r} for "
            f"{record.image}"
        )


def _facts(
    collection: Collection, record: Record, source: Source, config: DataConfig
) -> ImageFacts | None:
    """Give size and oddities of the image.

    It is read and hashed once, and recorded once if it is unusable or odd.
    """
    if record.image not in collection.images:
        facts: ImageFacts | None = None
        try:
            check_inside(source.image_root, record.image, config.links_into)
            facts = read_size(source.image_root / record.image)
            collection.image_sha256[record.image] = _sha256(source.image_root / record.image)
            if facts.notes:
                _fail(collection, record, f"converted: {', '.join(facts.notes)}", note=True)
        except ItemError as error:
            facts = None
            reason = f"{why(error, MAX_REASON)}; all objects of the image are left out"
            _fail(collection, record, reason, leads_to=_leads_to(error))
        collection.images[record.image] = facts
    return collection.images[record.image]


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise ItemError(f"expected a whole image, found {error.strerror} in {path}") from error


def _check_size(record: Record, facts: ImageFacts) -> None:
    if record.size is None or record.size == facts.size:
        return
    claimed, found = ("x".join(map(str, size)) for size in (record.size, facts.size))
    if record.size == facts.raw_size:
        raise ItemError(
            f"expected annotations at the upright size {found} (HxW), found them at {claimed}, "
            "before EXIF rotation; rotate the annotations or drop the EXIF orientation"
        )
    raise ItemError(
        f"expected an image of {claimed} (HxW) as annotated, found {found}; "
        "use the images that were annotated"
    )


def _check_shape(record: Record, source: Source, config: DataConfig) -> None:
    """Refuse a mask file elsewhere, and polygons without end."""
    shape = record.segmentation
    if isinstance(shape, str):
        check_inside(source.mask_root, shape, config.links_into)
        check_regular(source.mask_root / shape)
    if isinstance(shape, list):
        numbers = sum(len(polygon) for polygon in shape if isinstance(polygon, list))
        if max(numbers, len(shape)) > MAX_OUTLINE_NUMBERS:
            raise ItemError(
                f"expected at most {MAX_OUTLINE_NUMBERS} coordinates of an object, found more; "
                "simplify its polygons"
            )


def _expressions(collection: Collection, record: Record, max_words: int) -> tuple[str, ...]:
    """Give the usable expressions, spaces tidied; the others are recorded."""
    usable = []
    for text in record.expressions:
        tidy = " ".join(text.split())
        words = tidy.count(" ") + 1
        if not tidy:
            _fail(collection, record, "expected an expression, found an empty one")
        elif words > max_words or len(tidy) > max_words * MAX_LETTERS_PER_WORD:
            _fail(
                collection,
                record,
                f"expected at most {max_words} words in an expression, found {words} words in "
                f"{len(tidy)} characters; shorten it or raise data.max_words",
            )
        elif not _storable(tidy):
            _fail(collection, record, "expected Unicode text, found half a surrogate pair")
        else:
            usable.append(tidy)
    return tuple(usable)


def _storable(text: str) -> bool:
    """Tell whether text can be written as UTF-8; JSON admits lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _leads_to(error: ItemError) -> str:
    """Give what a refused link leads to, "" for any other error."""
    return error.leads_to if isinstance(error, LinkError) else ""


def _fail(
    collection: Collection, record: Record, reason: str, *, note: bool = False, leads_to: str = ""
) -> None:
    collection.failures.append(
        Failure(
            item=record.where,
            file=record.image,
            reason=reason,
            severity="note" if note else "failed",
            leads_to=leads_to,
        )
    )
