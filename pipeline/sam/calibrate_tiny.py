"""Make trained weights ready to ship: `python -m pipeline.sam.calibrate_tiny IN OUT`.

The logits are multiplied by a factor, so that the stability score, which compares cut-offs at -1
and +1, is 0.9 for the typical good mask. No mask moves by it. How well predicted IoU follows the
real one on held-out pictures is printed beside it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

from pipeline.sam.tiny import load_vit_tiny_demo
from pipeline.sam.tiny_batches import HELD_OUT_SEED, LEVELS, make_batch, training_picture
from pipeline.sam.tiny_losses import mask_iou
from pipeline.sam.train_tiny import encode, predict

_FACTORS = np.geomspace(0.25, 16, 25)
_GOOD_IOU, _GOOD_STABILITY = 0.6, 0.9


@dataclass(frozen=True, slots=True)
class Measured:
    """Masks of held-out pictures; row i is one point, column j one output against its own level."""

    predicted: npt.NDArray[np.float32]
    """Predicted IoU, shape (N, 3)."""
    real: npt.NDArray[np.float32]
    """Real IoU, shape (N, 3)."""
    stability: npt.NDArray[np.float32]
    """Stability score if the logits were multiplied by each of the factors, (N, 3, factors)."""


def stability_at(logits: torch.Tensor, factors: npt.NDArray[np.float64]) -> torch.Tensor:
    """Give the stability score of logits (..., H, W) times each factor, shape (..., factors)."""
    scores = [
        (logits > 1 / factor).sum((-1, -2)) / (logits > -1 / factor).sum((-1, -2)).clamp(min=1)
        for factor in factors.tolist()
    ]
    return torch.stack(scores, -1)


@torch.inference_mode()
def measure(sam: Any, scenes: int, prompts: int) -> Measured:
    """Run the small SAM on held-out pictures, from number 100 on, at random points."""
    rng = np.random.default_rng(1)
    rows = []
    for index in range(100, 100 + scenes):
        batch = make_batch(rng, [training_picture(HELD_OUT_SEED, index)], prompts, augment=False)
        logits, iou = predict(sam, batch, encode(sam, batch))
        rows.append((iou, mask_iou(logits, batch.target[0]), stability_at(logits, _FACTORS)))
    return Measured(*(torch.cat(column).numpy() for column in zip(*rows, strict=True)))


def fit_factor(measured: Measured) -> float:
    """Give the factor at which the median good mask has the wanted stability score."""
    good = measured.stability[measured.real > _GOOD_IOU]
    if not len(good):
        return 1.0
    typical = np.median(good, axis=0)
    return float(_FACTORS[np.abs(typical - _GOOD_STABILITY).argmin()])


def sharpen(sam: Any, factor: float) -> None:
    """Multiply all mask logits by a factor, in place."""
    with torch.no_grad():
        lasts = [network.layers[-1] for network in sam.mask_decoder.output_hypernetworks_mlps]
        for linear in (*lasts, *sam.mask_decoder.compare):
            linear.weight *= factor
            linear.bias *= factor


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--scenes", type=click.IntRange(min=1), default=150, show_default=True)
def main(source: Path, target: Path, scenes: int) -> None:
    """Calibrate the weights SOURCE and write them to TARGET."""
    torch.set_num_threads(1)
    sam = load_vit_tiny_demo(source)
    measured = measure(sam, scenes, prompts=16)
    predicted, real = measured.predicted, measured.real
    factor = fit_factor(measured)
    sharpen(sam, factor)
    save_file({k: v.contiguous() for k, v in sam.state_dict().items()}, target)
    target.chmod(0o644)  # safetensors writes for the owner alone
    click.echo(json.dumps({"logit_factor": round(factor, 3)}))
    for column, level in enumerate(LEVELS):
        row = {
            "mean_iou": real[:, column].mean(),
            "correlation": np.corrcoef(predicted[:, column], real[:, column])[0, 1],
            "mean_error": np.abs(predicted[:, column] - real[:, column]).mean(),
        }
        click.echo(json.dumps({"output": level} | {k: round(float(v), 4) for k, v in row.items()}))


if __name__ == "__main__":
    main()
