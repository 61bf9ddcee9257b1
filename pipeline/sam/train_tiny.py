"""Train the small SAM on generated blobs: `python -m pipeline.sam.train_tiny --out DIR`.

Shape legend: B scenes, K prompts per scene, N = B * K, L = 3 levels (region, part, object),
H and W rows and columns.
"""

import csv
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from safetensors.torch import save_file

from pipeline.sam.blobs import LEVELS, BlobScene, blob_scene
from pipeline.sam.decoder import decode_tokens, draw_masks
from pipeline.sam.tiny import build_vit_tiny_demo
from pipeline.sam.tiny_batches import HELD_OUT_SEED, Batch, ScenePool, make_batch
from pipeline.sam.tiny_losses import affinity_loss, initialize, loss_of, mask_iou

_LOG_COLUMNS = ("step", "seconds", "lr", "loss", "region_iou", "part_iou", "object_iou", "best_iou")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """How the small SAM is trained."""

    minutes: float = 60.0
    """Time budget, over which the learning rate falls to nearly zero."""
    seed: int = 0
    """Names the series of training scenes and seeds everything else."""
    scenes: int = 6
    """Scenes per step."""
    prompts: int = 5
    """Points per scene and step."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    warm_up: int = 60
    """Steps until the peak."""
    encoder_share: float = 0.08
    """Share of the time, at the start, in which only the encoder is trained."""
    ema_decay: float = 0.998
    """Share of the averaged weights that a step keeps."""
    pool: int = 3000
    """Scenes held in memory; the oldest is replaced."""
    fresh: int = 1
    """New scenes per step."""
    plain_of_three: int = 0
    """How many of every three scenes are plain ones (`plain_blobs`), 0 to 3."""
    log_every: int = 200
    """Steps between validations, each of which also writes a checkpoint."""


def encode(sam: Any, batch: Batch) -> torch.Tensor:
    """Give the embeddings of the batch, shape (B, C, H / 8, W / 8), float32."""
    embedding: torch.Tensor = sam.image_encoder((batch.image - sam.pixel_mean) / sam.pixel_std)
    return embedding


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
        logits.append(draw_masks(sam, rows, pixels))
        ious.append(iou)
    return torch.cat(logits), torch.cat(ious)


@torch.inference_mode()
def validate(sam: Any, scenes: list[BlobScene], prompts: int = 8) -> dict[str, float]:
    """Measure the mean IoU of each output with its level, and of the best output with any level."""
    rng = np.random.default_rng(0)
    rows = []
    for scene in scenes:
        batch = make_batch(rng, [scene], prompts, augment=False)
        logits, _ = predict(sam, batch, encode(sam, batch))
        target = batch.target.flatten(0, 1)
        every = mask_iou(logits[:, :, None], target[:, None])  # (K, 3 outputs, L)
        own = every.diagonal(dim1=1, dim2=2)
        rows.append(torch.cat([own, every.amax(1).mean(1, keepdim=True)], 1))
    mean = torch.cat(rows).mean(0).tolist()
    return dict(zip([*(f"{level}_iou" for level in LEVELS), "best_iou"], mean, strict=True))


@dataclass(slots=True)
class Trainer:
    """Everything that a checkpoint holds."""

    options: TrainOptions
    sam: Any
    averaged: Any
    head: torch.nn.Module
    optimizer: torch.optim.AdamW
    step: int = 0
    seconds: float = 0.0

    @classmethod
    def create(cls, options: TrainOptions) -> "Trainer":
        """Build the model, its average and the optimizer from the seed."""
        torch.manual_seed(options.seed)
        sam, averaged = build_vit_tiny_demo().train(), build_vit_tiny_demo()
        initialize(sam)
        averaged.load_state_dict(sam.state_dict())
        head = torch.nn.Conv2d(sam.prompt_encoder.embed_dim, 3 * 16, 1)
        weights = [*sam.parameters(), *head.parameters()]
        optimizer = torch.optim.AdamW(weights, lr=options.lr, weight_decay=0.02)
        return cls(options, sam, averaged, head, optimizer)

    def learning_rate(self) -> float:
        """Give the rate of this step: warm-up by steps, cosine by the time used."""
        share = min(self.seconds / (60 * self.options.minutes), 1.0)
        cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share))
        return self.options.lr * min(1.0, (self.step + 1) / self.options.warm_up) * cosine

    def update(self, batch: Batch) -> float:
        """Take one optimizer step and fold it into the average; give the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        embedding = encode(self.sam, batch)
        loss = affinity_loss(self.head, embedding, batch)
        share = self.seconds / (60 * self.options.minutes)
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
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
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
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]

    def start_from(self, path: Path) -> None:
        """Begin a new training at the averaged weights of another's `checkpoint.pt`."""
        state = torch.load(path, weights_only=True)
        self.sam.load_state_dict(state["averaged"])
        self.averaged.load_state_dict(state["averaged"])
        self.head.load_state_dict(state["head"])
        self.options = replace(self.options, encoder_share=0.0)


def train(trainer: Trainer, out: Path) -> Iterator[dict[str, float]]:
    """Train until the time is used up; give one row per validation, after writing a checkpoint."""
    options = trainer.options
    rng = np.random.default_rng([options.seed, trainer.step])
    drawn = trainer.step * options.fresh
    pool = ScenePool(options.seed, options.pool, options.plain_of_three, drawn=drawn)
    held_out = [blob_scene(HELD_OUT_SEED, index) for index in range(24)]
    pool.refill(300)
    losses: list[float] = []
    while trainer.seconds < 60 * options.minutes:
        began = time.monotonic()
        pool.refill(options.fresh)
        chosen = [pool.scenes[i] for i in rng.integers(len(pool.scenes), size=options.scenes)]
        losses.append(trainer.update(make_batch(rng, chosen, options.prompts, augment=True)))
        trainer.seconds += time.monotonic() - began
        done = trainer.seconds >= 60 * options.minutes
        if trainer.step % options.log_every == 0 or done:
            trainer.save(out)
            row = {"step": trainer.step, "seconds": round(trainer.seconds, 1)}
            row |= {"lr": trainer.learning_rate(), "loss": float(np.mean(losses))}
            yield row | validate(trainer.averaged, held_out)
            losses.clear()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", type=click.FloatRange(min=0.01), default=60.0, show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--lr", type=click.FloatRange(min=0), default=1e-3, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in --out.")
@click.option(
    "--start",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Begin with the averaged weights of this checkpoint.pt.",
)
@click.option(
    "--plain-of-three",
    type=click.IntRange(0, 3),
    default=0,
    show_default=True,
    help="How many of every three scenes are plain ones.",
)
@click.option("--scenes", type=click.IntRange(min=1), default=6, help="Scenes per step.")
@click.option("--prompts", type=click.IntRange(min=1), default=5, help="Points per scene and step.")
def main(
    minutes: float, out: Path, threads: int, resume: bool, start: Path | None, **options: Any
) -> None:
    """Train the small SAM for MINUTES and keep its averaged weights in OUT."""
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer.create(TrainOptions(minutes=minutes, **options))
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
