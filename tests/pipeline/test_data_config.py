"""A data section that cannot work is refused before anything is read."""

from pathlib import Path

import pytest

from pipeline.config import parse_config
from pipeline.data_config import DataConfig, LabelledConfig
from pipeline.errors import ConfigError


def test_the_section_is_parsed_from_yaml_values():
    config = parse_config(
        DataConfig,
        {
            "reader": "refer",
            "annotations": "a.p",
            "instances": "b.json",
            "images": "c",
            "labelled": {"ratio": 0.01},
        },
        "stages.yaml: data",
    )
    assert config.annotations == Path("a.p")
    assert config.labelled == LabelledConfig(ratio=0.01)
    assert config.input_files() == {"annotations": Path("a.p"), "instances": Path("b.json")}


def test_scenes_need_nothing():
    config = parse_config(DataConfig, {"reader": "scenes", "scenes": {"train": 3}}, "data")
    assert config.scenes == {"train": 3}
    assert config.input_files() == {}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"reader": "coco"}, "'coco'"),
        ({"reader": "jsonl"}, r"^stages.yaml: data: .* needs the path 'annotations'"),
        ({"reader": "refer", "annotations": "a"}, "'instances', found none; .* data.instances=P"),
        ({"reader": "scenes", "images": "a"}, "does not read 'images'"),
        (
            {"reader": "semires-split", "annotations": "a", "images": "b", "refs": "c"},
            "refs and instances together",
        ),
        ({"reader": "scenes", "image_pattern": "a.jpg"}, "image_pattern"),
        ({"reader": "scenes", "image_pattern": "100%%.jpg"}, "image_pattern"),
        ({"reader": "scenes", "image_pattern": "%d_%d.jpg"}, "image_pattern"),
        ({"reader": "scenes", "max_words": 0}, "max_words"),
        ({"reader": "scenes", "scenes_seed": -1}, "scenes_seed"),
        ({"reader": "scenes", "scenes": {"dev": 1}}, "'dev'"),
        ({"reader": "scenes", "scenes": {"train": -1}}, "counts"),
        ({"reader": "scenes", "scenes": {"train": 0}}, "counts"),
        ({"reader": "scenes", "scenes": {}}, "counts"),
        ({"reader": "scenes", "labelled": {"ratio": 0.0}}, r"\(0, 1\]"),
        ({"reader": "scenes", "labelled": {"ratio": 1.5}}, r"data.labelled: .* ratio in \(0, 1\]"),
        (
            {"reader": "scenes", "labelled": {"ratio": 0.5, "file": "a"}},
            "^stages.yaml: data.labelled: .* ratio and file; .* --set data.labelled.ratio=null",
        ),
        ({"reader": "jsonl", "annotations": "s3://b/c.jsonl"}, "data.annotations: .* the URL"),
        ({"reader": "jsonl", "annotations": "a", "images": "s3://b/c"}, "data.images: .* the URL"),
        ({"reader": "scenes", "links_into": ["s3://b/c"]}, r"data.links_into\[0\]: .* the URL"),
        ({"reader": "scenes", "labelled": {"file": "s3://b/c"}}, "data.labelled.file: .* the URL"),
        ({"reader": "scenes", "labelled": {"seed": -1}}, "seed"),
    ],
)
def test_bad_sections_are_refused(values, reason):
    with pytest.raises(ConfigError, match=reason):
        parse_config(DataConfig, values, "stages.yaml: data")
