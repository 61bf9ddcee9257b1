"""Train the small SAM on generated pictures: `python -m pipeline.sam.train_tiny --out DIR`.

Shape legend: B pictures, K prompts per picture, N = B * K, L = 3 levels (part, object, group),
C channels of the embedding, D of the detail features, H and W rows and columns.
"""

import csv
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from safetensors.torch import save_file

from pipeline.sam.decoder import decode_tokens, draw_masks
from pipeline.sam.tiny import build_vit_tiny_demo
from pipeline.sam.tiny_batches import (
    HELD_OUT_SEED,
    LEVELS,
    Batch,
    Picture,
    PicturePool,
    make_batch,
    training_picture,
)
from pipeline.sam.tiny_losses import affinity_loss, centre_loss, initialize, loss_of, mask_iou

_LOG_COLUMNS = ("step", "seconds", "lr", "loss", "part_iou", "object_iou", "group_iou")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """How the small SAM is trained."""

    steps: int = 10_000
    """Optimizer steps, over which the learning rate falls to nearly zero."""
    seed: int = 0
    """Names the series of training pictures and seeds everything else."""
    pictures: int = 4
    """Pictures per step."""
    prompts: int = 6
    """Points per picture and step."""
    lr: float = 2e-3
    """Peak learning rate of AdamW."""
    warm_up: int = 100
    """Steps until the peak."""
    head_share: float = 0.08
    """Share of the steps, at the end, in which only the IoU head is trained, of the averaged model:
    what it judges holds still by then."""
    encoder_share: float = 0.12
    """Share of the steps, at the start, in which only the encoder is trained."""
    ema_decay: float = 0.998
    """Share of the averaged weights that a step keeps."""
    pool: int = 3000
    """Pictures held in memory; the oldest is replaced."""
    fresh: int = 1
    """New pictures per step."""
    blobs_of_four: int = 1
    """How many of every four pictures are of blobs, 0 to 4."""
    log_every: int = 250
    """Steps between validations, each of which also writes a checkpoint."""


def encode(sam: Any, batch: Batch, bfloat16: bool = False) -> torch.Tensor:
    """Give the embeddings of the batch, shape (B, C + 16 D, H / 8, W / 8), float32."""
    image = (batch.image - sam.pixel_mean) / sam.pixel_std
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        embedding: torch.Tensor = sam.image_encoder(
            image.contiguous(memory_format=torch.channels_last)
        )
    return embedding.float()


def predict(sam: Any, batch: Batch, embedding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the decoder on every prompt.

    Returns:
        Logits, shape (N, L, 128, 128), and predicted IoU, shape (N, L), both float32.
    """
    logits, ious = [], []
    for row, point in enumerate(batch.point):
        labels = torch.ones(len(point), 1)
        sparse, _ = sam.prompt_encoder(points=(point[:, None], labels), boxes=None, masks=None)
        iou, rows, pixels = decode_tokens(sam, embedding[row : row + 1], sparse)
        logits.append(draw_masks(sam, embedding[row : row + 1], rows, pixels))
        ious.append(iou)
    return torch.cat(logits), torch.cat(ious)


@torch.inference_mode()
def validate(sam: Any, pictures: list[Picture], prompts: int = 12) -> dict[str, float]:
    """Measure the mean IoU of each output with its level, at prompts that are not background."""
    rng = np.random.default_rng(0)
    rows = []
    for picture in pictures:
        batch = make_batch(rng, [picture], prompts, augment=False)
        logits, _ = predict(sam, batch, encode(sam, batch))
        x, y = batch.point[0].long().T.numpy()
        thing = torch.from_numpy(~picture.is_background[picture.segments[0][y, x]])
        rows.append(mask_iou(logits, batch.target[0])[thing])
    mean = torch.cat(rows).mean(0).tolist()
    return dict(zip([f"{level}_iou" for level in LEVELS], mean, strict=True))


@dataclass(slots=True)
class Trainer:
    """Everything that a checkpoint holds."""

    options: TrainOptions
    sam: Any
    averaged: Any
    optimizer: torch.optim.AdamW
    head_optimizer: torch.optim.AdamW
    step: int = 0
    seconds: float = 0.0

    @classmethod
    def create(cls, options: TrainOptions) -> "Trainer":
        """Build the model, its average and the optimizer from the seed."""
        torch.manual_seed(options.seed)
        sam, averaged = build_vit_tiny_demo().train(), build_vit_tiny_demo()
        sam.image_encoder.to(memory_format=torch.channels_last)
        initialize(sam)
        averaged.load_state_dict(sam.state_dict())
        weights = [parameter for parameter in sam.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=options.lr, weight_decay=0.02)
        head = averaged.mask_decoder.iou_prediction_head.parameters()
        return cls(options, sam, averaged, optimizer, torch.optim.AdamW(head, lr=1e-3))

    def learning_rate(self) -> float:
        """Give the rate of this step: warm-up, then cosine."""
        share = min(self.step / self.options.steps, 1.0)
        cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share))
        return self.options.lr * min(1.0, (self.step + 1) / self.options.warm_up) * cosine

    def update_head(self, batch: Batch) -> float:
        """Take one step of the averaged model's IoU head; give the loss."""
        with torch.no_grad():
            embedding = encode(self.averaged, batch, bfloat16=True)
        logits, iou = predict(self.averaged, batch, embedding)
        loss = torch.nn.functional.mse_loss(iou, mask_iou(logits, batch.target.flatten(0, 1)))
        self.head_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.head_optimizer.step()
        self.step += 1
        return float(loss.detach())

    def update(self, batch: Batch) -> float:
        """Take one optimizer step and fold it into the average; give the loss."""
        if self.step >= self.options.steps * (1 - self.options.head_share):
            return self.update_head(batch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        # Half the time of float32 in the convolutions, on CPUs that have it.
        embedding = encode(self.sam, batch, bfloat16=True)
        loss = affinity_loss(self.sam, embedding, batch)
        loss = loss + 10 * centre_loss(self.sam, embedding, batch)
        share = self.step / self.options.steps
        if share >= self.options.encoder_share:
            logits, iou = predict(self.sam, batch, embedding)
            balance = max(0.1, 1 - 3 * (share - self.options.encoder_share))
            loss = loss + loss_of(logits, iou, batch.target.flatten(0, 1), balance)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.sam.parameters(), 1.0)
        self.optimizer.step()
        decay = min(self.options.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, new in zip(self.averaged.parameters(), self.sam.parameters(), strict=True):
                mean.lerp_(new, 1 - decay)
            for mean, new in zip(self.averaged.buffers(), self.sam.buffers(), strict=True):
                mean.copy_(new)
        self.step += 1
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"loss is {value} at step {self.step}")
        return value

    def save(self, out: Path) -> None:
        """Write `checkpoint.pt` to go on from and `vit_tiny_demo.safetensors` to use."""
        state = {
            "sam": self.sam.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "head_optimizer": self.head_optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, out / "checkpoint.partial")
        (out / "checkpoint.partial").replace(out / "checkpoint.pt")
        weights = {name: value.contiguous() for name, value in self.averaged.state_dict().items()}
        save_file(weights, out / "vit_tiny_demo.partial")
        (out / "vit_tiny_demo.partial").replace(out / "vit_tiny_demo.safetensors")

    def load(self, path: Path) -> None:
        """Go on from a `checkpoint.pt`."""
        state = torch.load(path, weights_only=True)
        self.sam.load_state_dict(state["sam"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.head_optimizer.load_state_dict(state["head_optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]

    def start_from(self, path: Path) -> None:
        """Begin a new training at another's averaged weights, as far as names and shapes fit."""
        old = torch.load(path, weights_only=True)["averaged"]
        own = self.sam.state_dict()
        fits = [name for name in own if name in old and old[name].shape == own[name].shape]
        own |= {name: old[name] for name in fits}
        self.sam.load_state_dict(own)
        self.averaged.load_state_dict(own)


def train(trainer: Trainer, out: Path) -> Iterator[dict[str, float]]:
    """Train to the last step; give one row per validation, after writing a checkpoint."""
    options = trainer.options
    rng = np.random.default_rng([options.seed, trainer.step])
    drawn = trainer.step * options.fresh
    pool = PicturePool(options.seed, options.pool, options.blobs_of_four, drawn=drawn)
    held_out = [training_picture(HELD_OUT_SEED, index) for index in range(32)]
    pool.refill(400)
    losses: list[float] = []
    while trainer.step < options.steps:
        began = time.monotonic()
        pool.refill(options.fresh)
        chosen = [pool.pictures[i] for i in rng.integers(len(pool.pictures), size=options.pictures)]
        losses.append(trainer.update(make_batch(rng, chosen, options.prompts, augment=True)))
        trainer.seconds += time.monotonic() - began
        done = trainer.step == options.steps
        if trainer.step % options.log_every == 0 or done:
            trainer.save(out)
            row = {"step": trainer.step, "seconds": round(trainer.seconds, 1)}
            row |= {"lr": trainer.learning_rate(), "loss": float(np.mean(losses))}
            yield row | validate(trainer.averaged, held_out)
            losses.clear()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--steps", type=click.IntRange(min=1), default=10_000, show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--lr", type=click.FloatRange(min=0), default=2e-3, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in --out.")
@click.option(
    "--start",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Begin with the averaged weights of this checkpoint.pt.",
)
@click.option(
    "--blobs-of-four",
    type=click.IntRange(0, 4),
    default=1,
    show_default=True,
    help="How many of every four pictures are of blobs.",
)
@click.option("--pictures", type=click.IntRange(min=1), default=4, help="Pictures per step.")
@click.option(
    "--prompts", type=click.IntRange(min=1), default=6, help="Points per picture and step."
)
def main(out: Path, threads: int, resume: bool, start: Path | None, **options: Any) -> None:
    """Train the small SAM and keep its averaged weights in OUT."""
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer.create(TrainOptions(**options))
    if start is not None:
        trainer.start_from(start)
    if resume:
        trainer.load(out / "checkpoint.pt")
    log = out / "vit_tiny_demo.log.csv"
    with log.open("a" if resume else "w", newline="") as file:
        writer = csv.DictWriter(file, _LOG_COLUMNS)
        if not resume:
            writer.writeheader()
        for row in train(trainer, out):
            short = {name: f"{value:.5g}" for name, value in row.items()}
            writer.writerow(short)
            file.flush()
            click.echo(" ".join(f"{name}={value}" for name, value in short.items()))


if __name__ == "__main__":
    main()
