"""Every format yields the records that stand in it, and a failure for every one that cannot."""

import io
import json
import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data_config import DataConfig
from pipeline.errors import ManifestError
from pipeline.readers import READERS
from pipeline.readers.base import Failure, Record
from pipeline.readers.ids import read_image_ids
from pipeline.readers.pickles import read_plain_pickle
from pipeline.segmentation import encode_segmentation
from tests.pipeline.small_data import (
    PHOTOS,
    RELEASED,
    SQUARE,
    jsonl_config,
    line,
    needs_photos,
    needs_released,
    write_lines,
)


def read(config, work):
    return list(READERS[config.reader](config, work, 1).items)


def ref(number=1, **changes):
    return {
        "ref_id": number,
        "ann_id": 10 + number,
        "image_id": 100,
        "category_id": 7,
        "split": "train",
        "file_name": "COCO_train2014_000000000100_11.jpg",
        "sent_ids": [0],
        "sentences": [{"sent_id": 0, "raw": "The LEFT cat!", "sent": "the left cat", "tokens": []}],
        **changes,
    }


INSTANCES = {
    "images": [{"id": 100, "file_name": "a.jpg", "height": 12, "width": 20}],
    "annotations": [
        {"id": 11, "image_id": 100, "category_id": 7, "segmentation": SQUARE},
        {"id": 12, "image_id": 100, "category_id": 9, "segmentation": SQUARE},
        {"id": 13, "image_id": 999, "category_id": 7, "segmentation": SQUARE},
    ],
    "categories": [{"id": 7, "name": "cat"}],
}


def refer_config(folder, refs, **changes):
    (folder / "instances.json").write_text(json.dumps(changes.pop("instances", INSTANCES)))
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    return DataConfig(
        reader="refer",
        annotations=folder / "refs(unc).p",
        instances=folder / "instances.json",
        images=folder,
        **changes,
    )


def test_refer_record_by_hand(tmp_path):
    (record,) = read(refer_config(tmp_path, [ref()]), tmp_path)
    assert record == Record(
        image="a.jpg",
        image_id="100",
        object_id="1",
        category="cat",
        split="train",
        expressions=("the left cat",),
        segmentation=SQUARE,
        size=(12, 20),
        where="refs(unc).p: ref 1",
    )


def test_refer_takes_the_raw_sentence_on_demand(tmp_path):
    (record,) = read(refer_config(tmp_path, [ref()], sentence="raw"), tmp_path)
    assert record.expressions == ("The LEFT cat!",)


def test_refer_names_a_file_by_pattern_where_instances_do_not(tmp_path):
    instances = {**INSTANCES, "images": []}
    (record,) = read(refer_config(tmp_path, [ref()], instances=instances), tmp_path)
    assert record.image == "COCO_train2014_000000000100.jpg"
    assert record.size is None


def test_refer_pickle_and_json_are_the_same(tmp_path):
    refs = [ref(1), ref(2)]
    pickled = read(refer_config(tmp_path, refs), tmp_path)
    (tmp_path / "refs.json").write_text(json.dumps(refs))
    config = DataConfig(
        reader="refer",
        annotations=tmp_path / "refs.json",
        instances=tmp_path / "instances.json",
        images=tmp_path,
    )
    spelt = read(config, tmp_path)
    assert [record.object_id for record in spelt] == ["1", "2"]
    assert [record.segmentation for record in spelt] == [r.segmentation for r in pickled]
    assert spelt[1].category == ""


def test_refer_bad_refs_are_failures_and_the_rest_goes_on(tmp_path):
    missing = ref(4)
    del missing["sentences"]
    refs = [ref(5), ref(3), missing, ref(1), ref(6, ann_id="x"), ref(7, ann_id=11, sentences=[5])]
    items = read(refer_config(tmp_path, refs), tmp_path)
    assert [type(item) for item in items] == [Failure, Failure, Failure, Record, Failure, Failure]
    assert "no such annotation" in items[0].reason
    assert "one of image 999" in items[1].reason
    assert items[2].item == "refs(unc).p: ref 4"


@pytest.mark.parametrize("document", [[], {"images": [{}], "annotations": [], "categories": []}])
def test_refer_refuses_instances_of_another_structure(tmp_path, document):
    with pytest.raises(ManifestError, match="COCO's images, annotations and categories"):
        read(refer_config(tmp_path, [ref()], instances=document), tmp_path)


def test_refer_refuses_refs_that_are_no_list(tmp_path):
    with pytest.raises(ManifestError, match="list of refs"):
        read(refer_config(tmp_path, {"a": 1}), tmp_path)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_not_executed(tmp_path, protocol):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([ref(), Malicious(tmp_path / "executed")], protocol=protocol))
    with pytest.raises(ManifestError, match=r"system.* it was not executed") as caught:
        read_plain_pickle(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_harmless_classes_are_refused_too(tmp_path):
    path = tmp_path / "a.p"
    path.write_bytes(pickle.dumps([io.BytesIO(b"x")]))
    with pytest.raises(ManifestError, match="BytesIO"):
        read_plain_pickle(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_of_every_protocol_are_read(tmp_path, protocol):
    value = [{"a": (1, 2.5, None, True), "b": ["é", 10**30]}]
    (tmp_path / "a.p").write_bytes(pickle.dumps(value, protocol=protocol))
    assert read_plain_pickle(tmp_path / "a.p") == value


def test_python_2_strings_become_text(tmp_path):
    # (lp0\nS'...'\np1\na. is a list of one byte string, as Python 2 writes it.
    (tmp_path / "plain.p").write_bytes(b"(lp0\nS'left cat'\np1\na.")
    (tmp_path / "latin.p").write_bytes(b"(lp0\nS'caf\\xe9'\np1\na.")
    (tmp_path / "utf8.p").write_bytes(b"(lp0\nS'caf\\xc3\\xa9'\np1\na.")
    (tmp_path / "long.p").write_bytes(b"(lp0\nL5L\na.")
    assert read_plain_pickle(tmp_path / "plain.p") == ["left cat"]
    assert read_plain_pickle(tmp_path / "latin.p") == ["café"]
    assert read_plain_pickle(tmp_path / "utf8.p") == ["café"]
    assert read_plain_pickle(tmp_path / "long.p") == [5]


@given(st.binary(max_size=40))
def test_garbage_is_no_pickle(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "garbage.p"
    path.write_bytes(b"(" + content)
    try:
        read_plain_pickle(path)
    except ManifestError as error:
        assert "garbage.p" in str(error)  # noqa: PT017


def test_a_missing_pickle_is_named(tmp_path):
    with pytest.raises(ManifestError, match=r"none\.p cannot be read"):
        read_plain_pickle(tmp_path / "none.p")


def test_jsonl_record_by_hand(tmp_path):
    config = jsonl_config(
        tmp_path,
        [line("./images//1.png", 1, category="dog"), {"image": "2.png", "expression": "it"}],
    )
    first, second = read(config, tmp_path)
    assert first == Record(
        image="images/1.png",
        image_id="images/1.png",
        object_id="thing-1",
        category="dog",
        split="train",
        expressions=("left thing 1",),
        segmentation=SQUARE,
        size=None,
        where="data.jsonl: line 1",
    )
    assert second.expressions == ("it",)
    assert second.object_id == "line-2"
    assert second.segmentation is None
    assert second.split == "train"


def test_jsonl_takes_the_claimed_size_from_an_rle(tmp_path):
    rle = {"size": [20, 12], "counts": "abc"}
    (record,) = read(jsonl_config(tmp_path, [line("1.png", 1, segmentation=rle)]), tmp_path)
    assert record.size == (20, 12)


def test_jsonl_reads_a_byte_order_mark_and_skips_blank_lines(tmp_path):
    path = write_lines(tmp_path / "data.jsonl", [line("1.png", 1), "", "  ", line("2.png", 2)])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    items = read(DataConfig(reader="jsonl", annotations=path), tmp_path)
    assert [item.where for item in items] == ["data.jsonl: line 1", "data.jsonl: line 4"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{not json", "one JSON object"),
        ("[1, 2]", "a JSON object, found list"),
        ("[" * 100_000, "one JSON object"),
        ('{"image": ' + "9" * 5000 + "}", "one JSON object"),
        (line("1.png", 1, colour="red"), "unknown key 'colour'"),
        (line("1.png", 1, image=5), "text as image"),
        (line("1.png", 1, image=""), "text as image"),
        ({"expressions": ["a"]}, "text as image, found none"),
        ({"image": "1.png"}, "both or neither"),
        (line("1.png", 1, expression="a"), "both or neither"),
        (line("1.png", 1, expressions="left"), "list of text"),
        (line("1.png", 1, expressions=["left", 5]), "list of text"),
        (line("1.png", 1, split=1), "text as split"),
        (line("1.png", 1, category=None), "text as category"),
        (line("1.png", 1, id=True), "as id"),
    ],
)
def test_jsonl_bad_lines_are_failures_with_their_number(tmp_path, bad, reason):
    good = line("1.png", 1)
    items = read(jsonl_config(tmp_path, [good, bad, good]), tmp_path)
    assert [type(item) for item in items] == [Record, Failure, Record]
    assert items[1].item == "data.jsonl: line 2"
    assert reason in items[1].reason
    assert "\n" not in items[1].reason


def test_jsonl_bytes_that_are_no_text_are_a_failure(tmp_path):
    path = write_lines(tmp_path / "data.jsonl", [line("1.png", 1)])
    path.write_bytes(b"\xff\xfe\n" + path.read_bytes())
    items = read(DataConfig(reader="jsonl", annotations=path), tmp_path)
    assert [type(item) for item in items] == [Failure, Record]


def test_a_missing_file_is_named(tmp_path):
    config = DataConfig(reader="jsonl", annotations=tmp_path / "none.jsonl")
    with pytest.raises(ManifestError, match=r"none\.jsonl"):
        read(config, tmp_path)


def test_split_joins_the_sentences_of_a_ref(tmp_path):
    entry = {"iid": 100, "bbox": [1, 1, 2, 2], "cat_id": 7, "mask_id": 1}
    document = {
        "train": [{**entry, "refs": ["a", "b"]}, {**entry, "mask_id": 2, "refs": ["c"]}],
        "val": [{**entry, "iid": 5, "refs": ["d"]}, {**entry, "iid": 5, "refs": ["e"]}, {"iid": 5}],
    }
    (tmp_path / "split.json").write_text(json.dumps(document))
    config = DataConfig(reader="semires-split", annotations=tmp_path / "split.json",
                        images=tmp_path)  # fmt: skip
    items = read(config, tmp_path)
    records = [item for item in items if isinstance(item, Record)]
    assert [(record.split, record.object_id, record.expressions) for record in records] == [
        ("train", "1", ("a", "b")),
        ("train", "2", ("c",)),
        ("val", "1", ("d", "e")),
    ]
    assert records[0].image == "COCO_train2014_000000000100.jpg"
    assert records[0].segmentation is None
    (failure,) = (item for item in items if isinstance(item, Failure))
    assert failure.item == "split.json: val[2]"


def test_split_finds_shapes_by_ref(tmp_path):
    refer_config(tmp_path, [ref(1), ref(2, image_id=5)])
    entry = {"iid": 100, "bbox": [1, 1, 2, 2], "cat_id": 7, "mask_id": 1, "refs": ["a"]}
    split = {"train": [entry, {**entry, "mask_id": 2}, {**entry, "mask_id": 3}]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    config = DataConfig(
        reader="semires-split",
        annotations=tmp_path / "split.json",
        images=tmp_path,
        refs=tmp_path / "refs(unc).p",
        instances=tmp_path / "instances.json",
    )
    record, *failures = read(config, tmp_path)
    assert record.segmentation == SQUARE
    assert record.category == "cat"
    assert (record.image, record.size) == ("a.jpg", (12, 20))
    assert [type(item) for item in failures] == [Failure, Failure]
    assert "no ref 2 of image 100" in failures[0].reason


def test_split_of_another_structure_is_refused(tmp_path):
    (tmp_path / "split.json").write_text('{"images": []}')
    config = DataConfig(reader="semires-split", annotations=tmp_path / "split.json",
                        images=tmp_path)  # fmt: skip
    with pytest.raises(ManifestError, match="released split"):
        read(config, tmp_path)


@needs_released
def test_the_released_split_holds_what_it_should(tmp_path):
    config = DataConfig(reader="semires-split", annotations=RELEASED, images=tmp_path)
    records = read(config, tmp_path)
    train = [record for record in records if record.split == "train"]
    assert len({record.image_id for record in train}) == 169
    assert len(train) == 432
    assert sum(len(record.expressions) for record in train) == 1222
    for split, refs, sentences in [
        ("val", 3811, 10834), ("testA", 1975, 5657), ("testB", 1810, 5095),
    ]:  # fmt: skip
        part = [record for record in records if record.split == split]
        assert len(part) == refs
        assert sum(len(record.expressions) for record in part) == sentences
    assert train[0].image == "COCO_train2014_000000580631.jpg"
    assert train[0].expressions[2] == "cream puff"


@needs_photos
def test_the_photos_are_the_same_by_jsonl_and_by_refer(tmp_path):
    refer = DataConfig(
        reader="refer",
        annotations=PHOTOS / "refs.json",
        instances=PHOTOS / "instances.json",
        images=PHOTOS / "images",
    )
    sizes = {record.image: record.size for record in read(refer, tmp_path)}
    masks = [
        {
            (record.image.removeprefix("images/"), record.expressions): encode_segmentation(
                record.segmentation, sizes[record.image.removeprefix("images/")], tmp_path
            )
            for record in read(config, tmp_path)
            if record.segmentation is not None
        }
        for config in (refer, DataConfig(reader="jsonl", annotations=PHOTOS / "photos.jsonl"))
    ]
    assert len(masks[0]) == 460
    assert masks[0] == masks[1]


def test_image_ids_are_read_from_lines_and_json(tmp_path):
    (tmp_path / "ids.txt").write_text("5\n\n ./a/b.png \n5\n")
    assert read_image_ids(tmp_path / "ids.txt") == ("5", "a/b.png")
    (tmp_path / "ids.json").write_text('[5, "x"]')
    assert read_image_ids(tmp_path / "ids.json") == ("5", "x")
    (tmp_path / "split.json").write_text('{"train": [{"iid": 5}, {"iid": 5}, {"iid": 7}]}')
    assert read_image_ids(tmp_path / "split.json") == ("5", "7")
    for name, content in {"a.txt": "\n", "a.json": "{}", "b.json": "5", "c.json": "["}.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(ManifestError, match=name):
            read_image_ids(tmp_path / name)
    with pytest.raises(ManifestError, match=r"none\.txt"):
        read_image_ids(tmp_path / "none.txt")


def test_every_reader_of_the_config_exists():
    hint = DataConfig.__dataclass_fields__["reader"].type
    assert sorted(READERS) == sorted(hint.__args__)
