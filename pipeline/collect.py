"""Check what a reader yields, object by object; what cannot be used becomes a failure."""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.collected import UNREAD, UNUSABLE, ImageRows, ObjectRows
from pipeline.columns import file_sha256
from pipeline.containment import LinkError, check_inside, check_regular
from pipeline.data_config import DataConfig
from pipeline.errors import ItemError
from pipeline.found_values import why
from pipeline.images import read_size
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


@dataclass(slots=True)
class Collection:
    """What has been read so far."""

    objects: ObjectRows = field(default_factory=ObjectRows)
    """Usable objects."""
    images: ImageRows = field(default_factory=ImageRows)
    """The files that objects name, those that cannot be used too."""
    num_kept: list[int] = field(default_factory=lambda: [0] * len(SPLITS))
    """Images with a usable object, by split."""
    failures: list[Failure] = field(default_factory=list)


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
    images, objects = collection.images, collection.objects
    image = _named_image(images, record)
    split = SPLITS.index(record.split)
    is_kept = images.kept_in[image] >> split & 1
    if limit is not None and collection.num_kept[split] >= limit and not is_kept:
        return
    if images.states[image] == UNREAD:
        _read_image(collection, image, record, source, config)
    if images.states[image] == UNUSABLE:
        return
    size = images.size_of(image)
    _check_size(record, size, images.raw_size_of(image))
    rle = b""
    if record.segmentation is not None:
        _check_shape(record, source, config)
        rle = encode_segmentation(record.segmentation, size, source.mask_root)
    elif record.split != "train":
        raise ItemError(f"expected a segmentation, found none; {record.split} needs the truth")
    expressions = _expressions(collection, record, config.max_words)
    if not expressions:
        raise ItemError("expected at least one usable expression, found none")
    if objects.ids.row_of(record.object_id) is not None:
        raise ItemError(f"expected every object id once, found {record.object_id!r} again")
    collection.num_kept[split] += not is_kept
    images.kept_in[image] |= 1 << split
    objects.append(
        record.object_id,
        image=image,
        split=split,
        category=record.category,
        rle=rle,
        expressions=expressions,
    )


def _named_image(images: ImageRows, record: Record) -> int:
    """Give the row of a record's image, its names checked."""
    names = (record.image, record.image_id, record.object_id, record.category)
    if not all(map(_storable, names)):
        raise ItemError("expected names in Unicode, found half a surrogate pair")
    if record.split not in SPLITS:
        raise ItemError(f"expected a split of {', '.join(SPLITS)}, found {record.split!r:.60}")
    # Otherwise one picture could be labelled under one id and unlabelled under the other.
    row = images.row_of(record.image, record.image_id)
    image_id = images.ids[row]
    if image_id != record.image_id:
        raise ItemError(
            f"expected one id per image file, found {image_id!r} and {record.image_id!r} for "
            f"{record.image}"
        )
    return row


def _read_image(
    collection: Collection, row: int, record: Record, source: Source, config: DataConfig
) -> None:
    """Read and hash an image when an object names it first; record what is unusable or odd."""
    path = source.image_root / record.image
    try:
        check_inside(source.image_root, record.image, config.links_into)
        facts = read_size(path)
        collection.images.put(row, facts, _sha256(path))
        if facts.notes:
            _fail(collection, record, f"converted: {', '.join(facts.notes)}", note=True)
    except ItemError as error:
        collection.images.states[row] = UNUSABLE
        reason = f"{why(error, MAX_REASON)}; all objects of the image are left out"
        _fail(collection, record, reason, leads_to=_leads_to(error))


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise ItemError(f"expected a whole image, found {error.strerror} in {path}") from error


def _check_size(record: Record, upright: tuple[int, int], stored: tuple[int, int]) -> None:
    """Check the (H, W) that the annotation claims, if it does, against that of the file."""
    if record.size is None or record.size == upright:
        return
    claimed, found = ("x".join(map(str, size)) for size in (record.size, upright))
    if record.size == stored:
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
