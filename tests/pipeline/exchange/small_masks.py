"""Small manifests, masks and files of masks, made on the spot."""

import json
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from pipeline.columns import StringColumn
from pipeline.errors import ConfigError, ItemError
from pipeline.exchange import ImportConfig, open_masks
from pipeline.manifest import Manifest

SIZE = (10, 12)


def manifest_of(paths, sizes=None, image_ids=None, refs=None):
    """Give a manifest of images and, for each, its objects' ids; no pixel is behind it."""
    refs = refs or [[f"ref-{row}"] for row in range(len(paths))]
    objects = [(row, ref) for row, own in enumerate(refs) for ref in own]
    count = len(objects)
    return Manifest(
        image_root=Path("images"),
        image_id=StringColumn.from_strings(image_ids or paths),
        image_path=StringColumn.from_strings(paths),
        image_sha256=StringColumn.from_strings(["0" * 64] * len(paths)),
        image_size=np.array(sizes or [SIZE] * len(paths), np.int32).reshape(-1, 2),
        image_labelled=np.zeros(len(paths), np.bool_),
        object_id=StringColumn.from_strings([ref for _, ref in objects]),
        object_image=np.array([row for row, _ in objects], np.int32),
        object_category=StringColumn.from_strings([""] * count),
        object_split=np.zeros(count, np.uint8),
        object_rle=StringColumn.from_strings([b""] * count),
        expression_object=np.arange(count, dtype=np.int32),
        expression_text=StringColumn.from_strings(["left thing"] * count),
        fingerprint="0" * 64,
    )


def two_masks(size=SIZE):
    """Give two masks (2, H, W), bool, that overlap."""
    masks = np.zeros((2, *size), np.bool_)
    masks[0, 2:6, 3:9] = True
    masks[1, 4:9, 5:12] = True
    return masks


@st.composite
def mask_sets(draw, max_side=24, max_masks=5):
    """Draw masks (N, H, W), bool, of which some may be empty."""
    shape = draw(
        st.tuples(st.integers(0, max_masks), st.integers(1, max_side), st.integers(1, max_side))
    )
    return draw(hnp.arrays(np.bool_, shape))


def rle(mask):
    """Encode a mask by pycocotools, for JSON."""
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def plain_rle(mask):
    """Encode a mask as uncompressed COCO RLE, pixel by pixel."""
    counts, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def semires_rle(mask):
    """Encode a mask as SemiRES does, pixel by pixel: (1-based start, length), column-major."""
    height, width = mask.shape
    counts = []
    position, inside = 0, False
    for x in range(width):
        for y in range(height):
            position += 1
            if mask[y, x] and not inside:
                counts += [position, 0]
            inside = bool(mask[y, x])
            if inside:
                counts[-1] += 1
    return {"counts": counts, "size": [height, width]}


def record(mask, **more):
    """Give a mask as segment-anything's mask generator does."""
    return {
        "segmentation": rle(mask),
        "area": int(mask.sum()),
        "bbox": [0.0, 0.0, 1.0, 1.0],
        "predicted_iou": 0.75,
        "point_coords": [[1.5, 2.5]],
        "stability_score": 0.5,
        "crop_box": [0.0, 0.0, 12.0, 10.0],
        **more,
    }


def coco_document(images, annotations):
    """Give a COCO document of {image id: file_name} and (image id, annotation) pairs."""
    return {
        "info": {"year": 2014},
        "annotations": [
            {"id": number, "image_id": image, "category_id": 1, **annotation}
            for number, (image, annotation) in enumerate(annotations)
        ],
        "images": [{"id": image, "file_name": name} for image, name in images.items()],
        "categories": [{"id": 1, "name": "object"}],
    }


def write_json(path, document):
    """Write JSON, with nan and infinity as json writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def opened(format_name, path, manifest):
    """Open a source of masks."""
    return open_masks(ImportConfig(format=format_name, path=path), manifest)


def read_or_refuse(format_name, path, manifest, size=SIZE):
    """Read every image; whatever the bytes are, the result is sound or the error one line."""
    try:
        source = opened(format_name, path, manifest)
    except ConfigError as error:
        assert_one_line(error)
        return
    for row in range(manifest.num_images):
        try:
            masks = source.masks_of(row, size)
        except ItemError as error:
            assert_one_line(error)
            continue
        assert masks.masks.shape == (len(masks), *size)
        assert (masks.area > 0).all()
        np.testing.assert_array_equal(masks.area, masks.masks.sum((1, 2)))
        for column in (masks.predicted_iou, masks.stability_score, masks.point):
            assert np.isfinite(column).all()
            assert (column >= 0).all()


def assert_one_line(error):
    """Check that a message is one line that can be printed."""
    assert str(error).isprintable() or str(error).isascii(), repr(str(error))
    assert "\n" not in str(error)
