"""Training and teacher prediction beside a plain float32 restatement, and where a step's time goes.

`python -m benchmarks.training` runs the toy on the CPU. On a GPU:
`--device cuda --size base --image-size 480 --batch 8`, which also doubles the batch until memory is
full (`--gib` sets how much there is).

The restatement is the step as one writes it first: float32, attention from its parts, no
channels-last, clipping, AdamW and EMA parameter by parameter. All others are the trainer's own
step. All begin with the same weights and see the same batch: their first losses agree but for
rounding and dropout, their last ones nearly, since AdamW enlarges the rounding of small gradients.
They take turns step by step in one process; ratios are what counts, machines differ. Peaks are
those of a process of its own. The profile is of the trainer's own loop on generated JPEGs and
labels, without loading processes unless asked for.
"""

import gc
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import torch
from torch import nn

import train.loop
import train.step
from benchmarks.loader import write_images
from benchmarks.sam_speed import Clock, peak_of
from benchmarks.synthetic_run import make_run
from pipeline.columns import StringColumn
from pipeline.commands import CONTEXT, print_table
from pipeline.manifest import load_manifest
from pipeline.paths import RunPaths
from refine.labels import LabelReader
from refine.stage import RefineConfig, refine_labels, with_strategy
from train.batches import Batch
from train.config import NetworkConfig, PhaseConfig, TrainConfig
from train.data import RoundSource, SampleIndex
from train.ema import make_teacher
from train.execution import prepare_student, running, wrap_student
from train.loop import Task, run_steps
from train.loss import supervised_loss, total_loss, unsupervised_loss
from train.networks import NETWORKS
from train.optim import make_optimizer, parameter_groups, poly_lr, set_lr
from train.predictor import Passes, Predictor
from train.processes import ALONE
from train.state import TrainingState
from train.step import Parts, seed_of, train_step
from train.text import build_vocabulary, load_text_encoder, save_vocabulary
from train.trained import build_network
from train.watch import Watch

RESTATED = "restated"
WAYS: dict[str, dict[str, Any]] = {
    RESTATED: {"attention": "eager"},
    "default": {},
    "eager attention": {"attention": "eager"},
    "channels_last": {"channels_last": True},
    "bfloat16": {"precision": "bfloat16"},
    "compile": {"compile": "inductor"},
    "all": {"channels_last": True, "precision": "bfloat16", "compile": "inductor"},
}
"""What is switched on beside the trainer's defaults; `all` is every option at once."""
PROFILED = ("default", "all")
PASSES = {
    "one by one, float32": Passes(encode_once=False),
    "encode_once": Passes(encode_once=True),
    "amp": Passes(encode_once=False, amp=True),
    "both": Passes(encode_once=True, amp=True),
}
ROUND, PHASE = 1, PhaseConfig(steps=100_000)
LARGEST_TRIED = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is trained, and where."""

    size: str
    image_size: int | None
    device: str
    batch: int

    def config(self, way: str) -> TrainConfig:
        """Give the trainer's config of a way."""
        options = {} if self.image_size is None else {"image_size": self.image_size}
        network = NetworkConfig(size=self.size, options=options)
        return TrainConfig(network=network, **WAYS[way])


def make_parts(config: TrainConfig, device: str, vocab_size: int | None = None) -> Parts:
    """Build student, teacher and AdamW as the trainer does, from random weights of seed 0."""
    torch.manual_seed(0)
    student = prepare_student(build_network(config.network, vocab_size), config, device)
    optimizer = make_optimizer(student, PHASE.learning_rate, weight_decay=config.weight_decay)
    wrapped = wrap_student(student, config, device, ALONE)
    return Parts(student, make_teacher(student), optimizer, device, wrapped)


def side_of(network: Any) -> int:
    """Give the side of a network's square, pixels."""
    return int(network.config.image_size)


def make_batch(count: int, side: int, tokens: int) -> Batch:
    """Draw samples, the first half labelled; every object is a square in the middle."""
    rng = torch.Generator().manual_seed(0)
    label = torch.zeros(count, side, side, dtype=torch.int64)
    label[:, side // 4 : side // 2, side // 4 : side // 2] = 1
    return Batch(
        image=torch.randn(count, 3, side, side, generator=rng),
        label=label,
        weight=torch.rand(count, side, side, generator=rng),
        token_ids=torch.randint(1, 1000, (count, tokens), generator=rng),
        token_mask=torch.ones(count, tokens, dtype=torch.int64),
        refined=torch.ones(count, dtype=torch.bool),
        valid=torch.ones(count, dtype=torch.bool),
        rows=tuple(range(count)),
        num_labelled=count // 2,
        damage=(),
    )


def restated_step(config: TrainConfig, parts: Parts, step: int, batch: Batch) -> float:
    """Do the update of `train_step` the plain way; give the loss."""
    set_lr(parts.optimizer, poly_lr(step, PHASE.steps, PHASE.learning_rate))
    parts.student.train()
    parts.optimizer.zero_grad(set_to_none=True)
    torch.manual_seed(seed_of(config.seed, ROUND, step, "step"))  # as the trainer's dropout
    b, n, weights = batch.to(parts.device), batch.num_labelled, config.class_weights
    with running(config, parts.device):  # nothing but the plain kernel of attention
        logits = parts.student(b.image, b.token_ids, b.token_mask)
    supervised = supervised_loss(logits[:n], b.label[:n], class_weights=weights)
    unsupervised = unsupervised_loss(
        logits[n:], b.label[n:], b.weight[n:], b.refined[n:], class_weights=weights
    )
    loss = total_loss(supervised, unsupervised)
    loss.backward()
    nn.utils.clip_grad_norm_(parts.student.parameters(), config.max_grad_norm, foreach=False)
    parts.optimizer.step()
    with torch.no_grad():
        pairs = zip(parts.teacher.parameters(), parts.student.parameters(), strict=True)
        for old, new in pairs:
            old.mul_(config.ema_decay).add_(new, alpha=1 - config.ema_decay)
        for kept, buffer in zip(parts.teacher.buffers(), parts.student.buffers(), strict=True):
            kept.copy_(buffer)
    return float(loss.detach())


def stepper(way: str, setting: Setting) -> Callable[[int], float]:
    """Give the function of a step's number that does it and gives its loss."""
    config = setting.config(way)
    parts = make_parts(config, setting.device)
    side = side_of(parts.student)
    batch = make_batch(setting.batch, side, config.network.max_tokens)
    if setting.device == "cuda":
        batch = batch.pin_memory()
    if way != RESTATED:
        return lambda step: train_step(config, PHASE, parts, ROUND, step, [batch])["loss"]
    groups = parameter_groups(parts.student, config.weight_decay)
    plain = torch.optim.AdamW(groups, lr=PHASE.learning_rate, foreach=False)
    parts = replace(parts, optimizer=plain)
    return lambda step: restated_step(config, parts, step, batch)


def largest_batch(way: str, setting: Setting) -> int:
    """Double the batch until the GPU's memory is full; give the last one that fitted."""
    fitted, tried = 0, 2
    while tried <= LARGEST_TRIED:
        try:
            step = stepper(way, replace(setting, batch=tried))
            step(0)
            step(1)  # with AdamW's moments
        except torch.cuda.OutOfMemoryError:
            break
        fitted, tried = tried, 2 * tried
        del step
        torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()
    return fitted


def in_a_process(option: str, way: str) -> float:
    """Ask a process of its own for one figure of one way."""
    command = [sys.executable, "-m", "benchmarks.training", *sys.argv[1:], option, way]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def compare_steps(setting: Setting, ways: list[str], steps: int, *, peaks: bool) -> None:
    """Print time, rate, memory and first loss of every way; they take turns."""
    cuda = setting.device == "cuda"
    peak = {way: in_a_process("--memory", way) if peaks else None for way in ways}
    largest = {way: int(in_a_process("--largest", way)) if cuda else None for way in ways}
    runs = {way: stepper(way, setting) for way in ways}
    clock, seconds = Clock(setting.device), {way: [0.0] * steps for way in ways}
    losses = {way: [run(0)] for way, run in runs.items()}
    for run in runs.values():
        run(1)
    for turn in range(steps):
        for way, run in runs.items():
            began = clock.now()
            losses[way].append(run(turn + 2))
            seconds[way][turn] = clock.now() - began
    rows = []
    for way in ways:
        ratios = [a / b for a, b in zip(seconds[RESTATED], seconds[way], strict=True)]
        spent = median(seconds[way])
        figures = [1e3 * spent, setting.batch / spent, median(ratios), peak[way], largest[way]]
        rows.append([way, *figures, *(f"{losses[way][at]:.4f}" for at in (0, -1))])
    columns = ["way", "ms/step", "images/s", "times restated", "peak MiB", "largest batch"]
    columns += ["first loss", "last"]
    title = f"training, lavt {setting.size}, batch {setting.batch}, {setting.device}, {steps} turns"
    print_table(title, columns, rows)


def make_data(run_dir: Path, images: int) -> None:
    """Write JPEGs, a manifest and refined labels of round 1."""
    make_run(run_dir, images)
    write_images(run_dir, images)
    refine = with_strategy(RefineConfig(shard_size=256, measure=False), "pwa")
    refine_labels(refine, run_dir, ROUND)


def compare_passes(setting: Setting, run_dir: Path, batch: int, turns: int) -> None:
    """Print expressions per second of the teacher's passes; every sentence comes twice."""
    manifest = load_manifest(RunPaths(run_dir).manifest)
    count = manifest.num_expressions
    sentences = [f"thing {i % -(-count // 2)}" for i in range(count)]
    manifest = replace(manifest, expression_text=StringColumn.from_strings(sentences))
    text = load_text_encoder(save_vocabulary(build_vocabulary(sentences), run_dir), 20)
    clock, rows = Clock(setting.device), []
    for name, size in (
        ("lavt", setting.size),
        ("clipseg", "toy" if setting.size == "toy" else "base"),
    ):
        options = {"image_size": setting.image_size} if setting.image_size else {}
        config = NetworkConfig(name=name, size=size, options=options if name == "lavt" else {})
        torch.manual_seed(0)
        network = build_network(config, text.vocab_size).to(setting.device).eval()
        predictor = Predictor(
            manifest=manifest,
            network=network,
            architecture=NETWORKS[name],
            text=text,
            side=side_of(network),
            batch_size=batch,
        )
        spent: dict[str, list[float]] = {way: [] for way in PASSES}
        for _ in range(turns + 1):  # the first is not counted
            for way, passes in PASSES.items():
                began = clock.now()
                found = list(replace(predictor, passes=passes).margins(np.arange(count)))
                spent[way].append(clock.now() - began)
                assert sum(len(positions) for positions, _, _ in found) == count
        plain = spent["one by one, float32"]
        for way, times in spent.items():
            ratio = median(a / b for a, b in zip(plain[1:], times[1:], strict=True))
            rows.append([f"{name} {size}, {way}", count / median(times[1:]), ratio])
    title = f"teacher prediction from JPEGs, batch {batch}, {setting.device}, {turns} turns"
    print_table(title, ["way", "expressions/s", "times plain"], rows)


def make_task(config: TrainConfig, run_dir: Path, batch: int, steps: int) -> Task:
    """Describe a training of round 1 on all that `make_data` wrote."""
    phase = replace(
        PHASE,
        steps=steps,
        labelled_batch=max(1, batch // 2),
        unlabelled_batch=max(1, -(-batch // 2)),
    )
    labelled = np.arange(load_manifest(RunPaths(run_dir).manifest).num_expressions)
    refined = np.arange(len(LabelReader(RunPaths(run_dir).labels(ROUND)).scalars()["source"]))
    return Task(
        config=replace(config, student=phase, save_every=steps + 1, cache_bytes=0),
        run_dir=run_dir,
        number=ROUND,
        fold=None,
        index=SampleIndex(labelled=labelled, refined=refined),
        failures=(),
        plan={},
        done=False,
    )


def profile(setting: Setting, ways: list[str], run_dir: Path, steps: int, workers: int) -> None:
    """Print the share of every part of the trainer's loop; waits for the device around each.

    The parts are wrapped for good, so that this comes last.
    """
    clock = Clock(setting.device)
    clock.wrap(train.loop, "next_batches", "loading")
    clock.wrap(train.step, "_losses", "forward, losses")
    clock.wrap(torch.Tensor, "backward", "backward")
    clock.wrap(nn.utils, "clip_grad_norm_", "clipping")
    clock.wrap(torch.optim.AdamW, "step", "AdamW")
    clock.wrap(train.step, "update_teacher", "EMA")
    clock.wrap(Watch, "step", "logs")
    text = RunPaths(run_dir).run_dir / "vocab.txt"
    vocab_size = load_text_encoder(text, 20).vocab_size
    columns = {}
    for way in ways:
        config = replace(setting.config(way), loader_workers=workers)
        parts = make_parts(config, setting.device, vocab_size)
        state = TrainingState()
        for end in (2, 2 + steps):
            task = make_task(config, run_dir, setting.batch, end)
            task.folder.mkdir(parents=True, exist_ok=True)
            source = RoundSource(
                config=task.config, run_dir=run_dir, number=ROUND, index=task.index,
                side=side_of(parts.student),
                vocabulary=text,
            )  # fmt: skip
            clock.seconds.clear()
            began = clock.now()
            run_steps(task, parts, state, source, None)
        total = clock.now() - began
        columns[way] = {**clock.seconds, "the rest": total - sum(clock.seconds.values())}
    print_profile(columns, steps, workers)


def print_profile(columns: dict[str, dict[str, float]], steps: int, workers: int) -> None:
    """Print the seconds of parts, by way, as milliseconds per step and shares of it."""
    rows = []
    for part in next(iter(columns.values())):
        row: list[Any] = [part]
        for of in columns.values():
            row += [1e3 * of[part] / steps, 100 * of[part] / sum(of.values())]
        rows.append(row)
    heads = [f"{way}, {unit}" for way in columns for unit in ("ms/step", "% of it")]
    print_table(f"where a step goes, {workers} loading processes", ["part", *heads], rows)


@click.command(context_settings=CONTEXT)
@click.option("--size", default="toy", show_default=True, help="Of LAVT, e.g. base.")
@click.option("--image-size", type=click.IntRange(min=32), help="Side of the square, pixels.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--batch", type=click.IntRange(min=2), default=8, show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=10, show_default=True, help="Timed.")
@click.option("--way", "ways", multiple=True, type=click.Choice(list(WAYS)), help="Default: all.")
@click.option("--images", type=click.IntRange(min=1), default=6, show_default=True)
@click.option("--teacher-batch", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--workers", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--gib", type=click.FloatRange(min=1), help="Use so much of the GPU's memory.")
@click.option("--peaks/--no-peaks", default=True, show_default=True, help="A process per way.")
@click.option("--memory", type=click.Choice(list(WAYS)), help="Only print a way's peak, MiB.")
@click.option("--largest", type=click.Choice(list(WAYS)), help="Only print its largest batch.")
def main(size: str, image_size: int | None, device: str, batch: int, **others: Any) -> None:
    """Print training, teacher prediction and the parts of a step, side by side."""
    torch.set_num_threads(others["threads"])
    setting = Setting(size=size, image_size=image_size, device=device, batch=batch)
    if device == "cuda" and others["gib"]:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, others["gib"] * 2**30 / total))
    if others["memory"]:
        step = stepper(others["memory"], setting)
        print(peak_of(lambda: [step(0), step(1)], device))
    elif others["largest"]:
        print(largest_batch(others["largest"], setting))
    else:
        report(setting, **others)


def report(setting: Setting, *, ways: tuple[str, ...], steps: int, **others: Any) -> None:
    """Print all tables."""
    chosen = [way for way in WAYS if way in (RESTATED, *(ways or WAYS))]
    started, run_dir = time.monotonic(), Path(tempfile.mkdtemp(prefix="semires-training-"))
    try:
        compare_steps(setting, chosen, steps, peaks=others["peaks"])
        make_data(run_dir, others["images"])
        compare_passes(setting, run_dir, others["teacher_batch"], max(1, steps // 3))
        profiled = [way for way in PROFILED if way in chosen] or ["default"]
        profile(setting, profiled, run_dir, steps, others["workers"])
    finally:
        shutil.rmtree(run_dir)
    click.echo(f"torch {torch.__version__}, {time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main()
