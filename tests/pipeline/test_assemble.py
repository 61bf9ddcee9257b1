"""Objects in the order of the annotations become the rows of a manifest."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.assemble import Leaks, assemble
from pipeline.collected import UNREAD, ImageRows, ObjectRows
from pipeline.data_config import LabelledConfig
from pipeline.errors import ManifestError
from pipeline.images import ImageFacts
from pipeline.manifest import SPLITS

PATHS = [f"images/{name}.png" for name in "abcdef"]
ONE = st.tuples(st.sampled_from(PATHS), st.sampled_from(SPLITS), st.booleans(), st.integers(1, 3))
LISTS = st.lists(ONE, min_size=1, max_size=25)


def size_of(path):
    return 10 + PATHS.index(path), 20


def sha256_of(path):
    return hashlib.sha256(path.encode()).hexdigest()


def texts(number, count):
    return [f"the {number}th, {k}" for k in range(count)]


def collected(items):
    """Give the tables of some (path, split, has a truth, number of expressions)."""
    images, objects = ImageRows(), ObjectRows()
    for number, (path, split, has_truth, count) in enumerate(items):
        row = images.row_of(path, f"id of {path}")
        images.put(row, ImageFacts(size=size_of(path), raw_size=(1, 1), notes=()), sha256_of(path))
        objects.append(
            f"object {number}",
            image=row,
            split=SPLITS.index(split),
            category=f"kind {number % 2}",
            rle=b"0" * (number + 1) if has_truth else b"",
            expressions=texts(number, count),
        )
    return images, objects


def rows_of(items, drop_leaking):
    """Give the rows of objects and the paths of images in their order: the rule, one by one."""
    kept = list(range(len(items)))
    if drop_leaking:
        held_out = {path for path, split, _, _ in items if split != "train"}
        kept = [n for n in kept if items[n][1] != "train" or items[n][0] not in held_out]
    by_split = sorted(kept, key=lambda n: SPLITS.index(items[n][1]))
    paths = list(dict.fromkeys(items[n][0] for n in by_split))
    return sorted(by_split, key=lambda n: paths.index(items[n][0])), paths


def assembled(items, *, drop_leaking=True, labelled=None):
    return assemble(
        *collected(items),
        Path("root"),
        labelled or LabelledConfig(),
        None,
        drop_leaking=drop_leaking,
        trial=False,
    )


@given(LISTS)
def test_rows_stand_as_the_rule_says(items):
    rows, paths = rows_of(items, drop_leaking=True)
    manifest, leaks = assembled(items)
    assert list(manifest.image_path) == paths
    assert list(manifest.image_id) == [f"id of {path}" for path in paths]
    assert list(manifest.image_sha256) == [sha256_of(path) for path in paths]
    assert manifest.image_size.tolist() == [list(size_of(path)) for path in paths]
    assert list(manifest.object_id) == [f"object {n}" for n in rows]
    assert manifest.object_image.tolist() == [paths.index(items[n][0]) for n in rows]
    assert list(manifest.object_category) == [f"kind {n % 2}" for n in rows]
    assert [SPLITS[split] for split in manifest.object_split] == [items[n][1] for n in rows]
    assert list(manifest.object_rle) == ["0" * (n + 1) if items[n][2] else "" for n in rows]
    counts = [items[n][3] for n in rows]
    assert manifest.expression_object.tolist() == np.repeat(np.arange(len(rows)), counts).tolist()
    assert list(manifest.expression_text) == [
        text for n in rows for text in texts(n, items[n][3])
    ]  # fmt: skip
    dropped = [n for n in range(len(items)) if n not in rows]
    assert leaks == Leaks(images=len({items[n][0] for n in dropped}), objects=len(dropped))


@given(LISTS)
def test_leaks_are_refused_unless_they_are_dropped(items):
    rows, _ = rows_of(items, drop_leaking=True)
    if len(rows) == len(items):
        manifest, leaks = assembled(items, drop_leaking=False)
        assert manifest.fingerprint == assembled(items)[0].fingerprint
        assert leaks == Leaks()
    else:
        with pytest.raises(ManifestError, match="no training image in another split"):
            assembled(items, drop_leaking=False)


def test_images_without_a_usable_object_are_left_out():
    images, objects = collected([(PATHS[1], "train", True, 1), (PATHS[0], "val", True, 2)])
    unread = images.row_of(PATHS[2], "another")
    assert images.states[unread] == UNREAD
    manifest, _ = assemble(
        images, objects, Path(), LabelledConfig(ratio=1.0), None, drop_leaking=False, trial=False
    )
    assert list(manifest.image_path) == [PATHS[1], PATHS[0]]
    assert manifest.image_labelled.tolist() == [True, False]


def test_the_strings_are_handed_over():
    images, objects = collected([(PATHS[0], "train", True, 2)])
    manifest, _ = assemble(
        images, objects, Path(), LabelledConfig(), None, drop_leaking=False, trial=False
    )
    assert list(manifest.expression_text) == ["the 0th, 0", "the 0th, 1"]
    left = (images.paths, images.ids, objects.ids, objects.rles, objects.expressions)
    assert [len(strings) for strings in left] == [0] * 5


def test_an_image_keeps_its_first_id_and_its_facts():
    images = ImageRows()
    facts = ImageFacts(size=(30, 20), raw_size=(20, 30), notes=("exif-rotated",))
    images.row_of("z.png", "other")
    row = images.row_of("a.png", "7")
    images.put(row, facts, "ab" * 32)
    assert images.row_of("a.png", "8") == row == 1
    assert (images.ids[row], images.size_of(row), images.raw_size_of(row)) == (
        "7",
        (30, 20),
        (20, 30),
    )
    assert images.sizes_at(np.array([1, 0])).tolist() == [[30, 20], [0, 0]]
    assert list(images.sha256_at(np.array([1, 0]))) == ["ab" * 32, "00" * 32]
