import json

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.sam.hub_pixels import Pixels, read_pixels

_SQUARE = {"height": 64, "width": 64}


def _write(folder, name="preprocessor_config.json", **values):
    found = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 1.0], **values}
    (folder / name).write_text(json.dumps(found))


def test_defaults_are_those_of_sam(tmp_path):
    assert read_pixels(tmp_path, 64, keep_aspect=True) == Pixels(side=64, keep_aspect=True)


@pytest.mark.parametrize("keep_aspect", [True, False])
def test_checkpoint_says_how_to_normalise(tmp_path, keep_aspect):
    size = {"longest_edge": 64} if keep_aspect else _SQUARE
    _write(tmp_path, size=size, rescale_factor=1 / 256, resample=3)
    found = read_pixels(tmp_path, 64, keep_aspect)
    expected = Pixels(
        side=64,
        keep_aspect=keep_aspect,
        mean=(128.0, 128.0, 128.0),
        std=(64.0, 128.0, 256.0),
        resample=3,
    )
    assert found == expected


def test_preprocessor_counts_before_processor(tmp_path):
    inner = {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": inner}))
    assert read_pixels(tmp_path, 64, keep_aspect=False).std == (255.0, 255.0, 255.0)
    _write(tmp_path)
    assert read_pixels(tmp_path, 64, keep_aspect=False).std == (63.75, 127.5, 255.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"do_normalize": False}, "expected do_normalize true, found False"),
        ({"do_resize": None}, "expected do_resize true, found None"),
        ({"size": {"longest_edge": 32}}, r"expected size {'longest_edge': 64}"),
        ({"pad_size": {"height": 32, "width": 32}}, r"expected pad_size {'height': 64"),
        ({"image_mean": "x"}, "does not say how to normalise"),
        ({"image_mean": None}, "does not say how to normalise"),
        ({"rescale_factor": 0}, "does not say how to normalise"),
        ({"resample": 77}, "does not say how to normalise"),
        ({"image_mean": [0.5, 0.5]}, "expected 3 means and 3 deviations above 0"),
        ({"image_std": [0.5, 0.5, 0.0]}, "expected 3 means and 3 deviations above 0"),
        ({"image_processor": 3}, "image_processor is a JSON object, found 3"),
    ],
    ids=str,
)
def test_other_preparation_is_refused(tmp_path, values, message):
    _write(tmp_path, **values)
    with pytest.raises(ConfigError, match=message) as caught:
        read_pixels(tmp_path, 64, keep_aspect=True)
    assert "preprocessor_config.json" in str(caught.value)


def test_padding_is_zero_after_normalising():
    pixels = Pixels(side=8, keep_aspect=True, mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 5.0))
    image = np.full((2, 4, 3), 50, np.uint8)
    found = pixels.normalise([pixels.scale(image)], torch.device("cpu"))[0]
    assert found.shape == (3, 8, 8)
    assert found[:, :4].flatten(1).unique(dim=1).flatten().tolist() == [20.0, 7.5, 4.0]
    assert not found[:, 4:].any()


def test_points_go_to_the_square_by_hand():
    points = np.asarray([[10.0, 5.0]])
    assert Pixels(side=64, keep_aspect=True).to_square(points, (10, 20)).tolist() == [[32.0, 16.0]]
    assert Pixels(side=64, keep_aspect=False).to_square(points, (10, 20)).tolist() == [[32.0, 32.0]]


def test_padding_is_cut_off_masks():
    logits = torch.full((1, 2, 2), -1.0)
    logits[0, 0] = 1.0  # the upper half of the square, which is the whole of a wide image
    wide = Pixels(side=64, keep_aspect=True).to_image(logits, (32, 64))
    assert wide.shape == (1, 32, 64)
    assert (wide > 0).all()
    square = Pixels(side=64, keep_aspect=False).to_image(logits, (32, 64))
    assert (square[0] > 0).sum(0).tolist() == [16] * 64
