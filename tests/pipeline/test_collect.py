"""What is read takes columns, and no Python object is kept for an image or an object."""

import tracemalloc
from contextlib import contextmanager

from pipeline.collect import collect
from pipeline.collected import ImageRows
from pipeline.data_config import DataConfig
from pipeline.images import ImageFacts
from pipeline.readers.base import Record, Source
from tests.pipeline.small_data import write_image

COUNT = 4000
SENTENCES = 5


@contextmanager
def traced(limit_per_item):
    """Check that what is kept of COUNT items, and never more, takes so many bytes of each."""
    tracemalloc.start()
    try:
        yield
        kept, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept / COUNT < limit_per_item
    assert most / COUNT < 2 * limit_per_item


def records(image, count):
    for number in range(count):
        yield Record(
            image=image,
            image_id=image,
            object_id=f"thing-{number}",
            category="thing",
            split="train",
            expressions=tuple(f"the thing on the left {number} {k}" for k in range(SENTENCES)),
            segmentation=None,
            size=None,
            where=f"line {number}",
        )


def test_an_object_with_five_sentences_is_kept_in_few_bytes(tmp_path):
    write_image(tmp_path / "a.png")
    config = DataConfig(reader="jsonl", annotations=tmp_path / "none.jsonl")
    one, all_of_them = (
        Source(image_root=tmp_path, mask_root=tmp_path, items=records("a.png", count))
        for count in (1, COUNT)
    )
    collect(one, config, limit=None, progress=None)  # what is imported takes memory too
    with traced(400):  # 151 of text, 11 of the id, 5 of the kind and 8 for each of those strings
        found = collect(all_of_them, config, limit=None, progress=None)
    assert len(found.objects) == COUNT
    assert found.objects.expressions[SENTENCES * COUNT - 1] == "the thing on the left 3999 4"


def test_an_image_is_kept_in_few_bytes():
    facts = ImageFacts(size=(480, 640), raw_size=(480, 640), notes=())
    images = ImageRows()
    with traced(160):  # 20 of the path, 4 of the id and 8 for both, 32 of the hash, 16 of the sizes
        for number in range(COUNT):
            row = images.row_of(f"images/{number:09d}.jpg", f"{number}")
            images.put(row, facts, f"{number:064x}")
    assert len(images) == COUNT
