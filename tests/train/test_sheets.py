"""The sheet of an evaluation names what it shows."""

from types import SimpleNamespace

import numpy as np

from pipeline.drawing import LABEL_COLOUR, outline
from refine.upsample import upsample_align_corners
from tests.refine.scene_run import make_scenes
from train.sheets import CANVAS_PX, _panels


def test_a_sentence_is_shown_with_its_file_and_expression(tmp_path):
    manifest = make_scenes(tmp_path)
    margin_hw = np.array([[1, -1], [-1, -1]], np.float32)
    panels = _panels(SimpleNamespace(manifest=manifest), 5, margin_hw, "best, IoU 0.42")
    file = manifest.image_path[manifest.expression_image[5]]
    assert [caption for _, caption in panels] == [
        f"expression 5 · {manifest.expression_text[5]}\n{file}",
        "best, IoU 0.42",
        "truth",
    ]
    predicted_HW = upsample_align_corners(margin_hw, panels[0][0].shape[:2]) > 0
    assert predicted_HW.any()
    assert max(predicted_HW.shape) <= CANVAS_PX
    assert (panels[1][0][outline(predicted_HW)] == LABEL_COLOUR).all()
