"""segment-anything and transformers import whether or not torchvision's compiled operators load."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_both_libraries_import_in_a_fresh_process():
    result = run(
        "from pipeline.torchvision_ops import ensure_importable\n"
        "ensure_importable(); ensure_importable()\n"
        "import torchvision, segment_anything\n"
        "from transformers import SwinModel, BertModel\n"
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("order", ["before", "after"])
def test_nothing_is_declared_where_the_operators_exist(order):
    """Stands for a whole torchvision: somebody else has defined and implemented nms."""
    result = run(
        "import torch\n"
        "from pipeline import torchvision_ops as ops\n"
        "library = torch.library.Library('torchvision', 'DEF')\n"
        "library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        "library.impl('nms', lambda d, s, t: torch.arange(len(d)), 'CPU')\n"
        + ("ops.ensure_importable()\n" * (2 if order == "after" else 1))
        + "assert not ops._LIBRARY\n"
        "kept = torch.ops.torchvision.nms(torch.zeros(3, 4), torch.zeros(3), 0.5)\n"
        "assert kept.tolist() == [0, 1, 2]\n"
    )
    assert result.returncode == 0, result.stderr
