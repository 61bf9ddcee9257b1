"""The sections of stages.yaml that concern networks: train, teacher, evaluate, rounds."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.manifest import SPLITS
from train.augment import AugmentConfig
from train.network_sizes import SIZES, longest_sentence

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
OptionValue = int | float | bool | tuple[int, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """Which network is trained."""

    name: str = "lavt"
    """LAVT, which the paper trains, or CLIPSeg."""
    size: str = "toy"
    """One of its sizes, which gives every option a value."""
    options: dict[str, OptionValue] = field(default_factory=dict)
    """Options by name, in place of the size's own values."""
    tokenizer: Path | None = None
    """A vocab.txt, a folder, or a name on the hub; None builds a word vocabulary from the training
    expressions. Files count by their content, and have to stay where they are: a trained network
    is used with the tokenizer that it was trained with."""
    max_tokens: int = 20
    """Tokens per sentence, special ones included, from 3 to the option `text_positions`; longer
    sentences are cut."""
    init: tuple[Path, ...] = ()
    """Files of `import-weights` that round 0 starts from, e.g. one of a Swin and one of BERT; what
    none of them gives is random."""

    def __post_init__(self) -> None:
        if self.name not in SIZES:
            raise ValueError(f"name: unknown {self.name!r}; known are {', '.join(SIZES)}")
        positions = longest_sentence(self.name, self.size, self.options)
        if not 3 <= self.max_tokens <= positions:
            raise ValueError(
                f"max_tokens: expected 3 to {positions} (text_positions), found {self.max_tokens}"
            )

    def input_files(self, *, starts: bool) -> dict[str, Path]:
        """Give the files that have to be here, by field name; what the hub may have is left out.

        Args:
            starts: Whether for round 0, which reads `init`.
        """
        files = {f"init[{at}]": path for at, path in enumerate(self.init)} if starts else {}
        if self.tokenizer is not None and (
            self.tokenizer.suffix == ".txt" or not _HUB_NAME.fullmatch(self.tokenizer.as_posix())
        ):
            files["tokenizer"] = self.tokenizer
        return files


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseConfig:
    """How long and how fast a network is trained in one round."""

    steps: int = 400
    """Optimizer updates, at least 1."""
    learning_rate: float = 5e-5
    """AdamW's at the start, more than 0; falls to exactly 0 by the poly rule."""
    labelled_batch: int = 3
    """Labelled expressions per step, at least 1, over all processes and micro-batches together."""
    unlabelled_batch: int = 3
    """Expressions with a refined label per step, at least 1, likewise; unused in round 0."""
    warmup_steps: int = 0
    """Steps, fewer than `steps`, over which the learning rate rises linearly from 0."""

    def __post_init__(self) -> None:
        for name in ("steps", "labelled_batch", "unlabelled_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate: expected more than 0, found {self.learning_rate}")
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(
                f"warmup_steps: expected 0 to {self.steps - 1}, found {self.warmup_steps}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The `train` section of stages.yaml."""

    seed: int = 0
    """Of weights, order and augmentation; at least 0."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """The network."""
    burn_in: PhaseConfig = field(default_factory=PhaseConfig)
    """Round 0: labelled data only."""
    student: PhaseConfig = field(default_factory=PhaseConfig)
    """Rounds 1 and later: labelled data and refined labels; starts from the teacher."""
    weight_decay: float = 0.01
    """AdamW's, at least 0, on all but the backbone's norms and position tables."""
    frozen: tuple[str, ...] = ()
    """Beginnings of the names of parameters that never train, e.g. `text.embeddings.`."""
    ema_decay: float = 0.996
    """Share of the old teacher that is kept at every step, in [0, 1); the paper's alpha."""
    ema_warmup: bool = False
    """Let the decay rise with the steps, for short trainings."""
    class_weights: tuple[float, float] = (0.9, 1.1)
    """Of background and foreground in the cross entropy, as in the released code."""
    dice: float = 0.0
    """Factor of a dice loss beside the cross entropy, at least 0; SemiRES has none."""
    labelled_weight: float = 1.0
    """Factor of the supervised loss, at least 0; the paper gives no value."""
    unlabelled_weight: float = 1.0
    """Factor of the loss on refined labels, at least 0; the paper gives no value."""
    balance: Literal["per_sample", "branch"] = "per_sample"
    """`per_sample`: one mean over refined labels; `branch`: half for matched labels and half for
    those of PWA, as released."""
    max_grad_norm: float | None = 1.0
    """Norm to which gradients are clipped, more than 0; None switches it off."""
    accumulate: int = 1
    """Micro-batches that a step's samples are dealt into, at least 1, for batches that do not
    fit."""
    batch_norm: Literal["synced", "frozen"] = "synced"
    """`synced`: statistics of the micro-batch over all processes; `frozen`: the running ones, which
    then stay as they are. Only with `frozen` do micro-batches add up to the whole batch exactly."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the student's forward and backward pass; weights, losses and AdamW are float32."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Torch's fused attention, or its parts one by one."""
    channels_last: bool = False
    """Lay images and convolutions out channels last, which tensor cores like."""
    compile: Literal["inductor", "aot_eager"] | None = None
    """Backend of torch.compile: `inductor` generates code, `aot_eager` only traces; None is off."""
    labelled_view: Literal["plain", "weak", "strong"] = "plain"
    """Augmentation of labelled images, see `augment`; the released code has none."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Weak and strong views; the student sees the strong one."""
    save_every: int = 200
    """Steps between checkpoints, at least 1: what a kill can cost."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept while training, at least 1; the best one is kept beside them."""
    evaluate_every: int | None = None
    """Steps between looks at the validation split, at least 1, each of which also saves; None is
    never."""
    evaluate_expressions: int = 256
    """Validation expressions that are looked at, at least 1, evenly spread over the split."""
    evaluate_by: Literal["overall_iou", "mean_iou"] = "overall_iou"
    """Which figure of the EMA teacher says what is better, by the `square` protocol."""
    patience: int | None = None
    """Looks without a better figure, at least 1, after which training ends early; None trains to
    the end."""
    final: Literal["last", "best"] = "last"
    """Which teacher the training leaves: that of its last step, or the best one looked at."""
    damaged: Literal["stop", "skip"] = "stop"
    """What to do when a label or image cannot be read: end, or leave it out and count it."""
    tensorboard: bool = False
    """Also log for TensorBoard, which the extra `watch` installs."""
    wandb: str | None = None
    """Also log to this project of Weights & Biases, which the extra `watch` installs; None is off.
    WANDB_MODE=offline keeps the log in the training's folder."""
    num_threads: int | None = None
    """CPU threads of torch, at least 1; None leaves torch's choice. On a CPU it decides the last
    bits."""
    loader_workers: int = 0
    """Processes that decode and augment, at least 0: then the training process does it."""
    cache_bytes: int = 1 << 28
    """Room for decoded images in each loading process, bytes, at least 0."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network is trained; `auto` takes a GPU if there is one."""

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay: expected a number in [0, 1), found {self.ema_decay}")
        for name, least in (("save_every", 1), ("keep_checkpoints", 1), ("loader_workers", 0),
                            ("cache_bytes", 0), ("seed", 0), ("weight_decay", 0), ("dice", 0),
                            ("labelled_weight", 0), ("unlabelled_weight", 0)):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, found {getattr(self, name)}")
        for name in ("num_threads", "evaluate_every", "patience", "accumulate",
                     "evaluate_expressions"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, found {value}")
        if self.evaluate_every is None and (self.patience is not None or self.final == "best"):
            raise ValueError(
                "evaluate_every: expected a number of steps, found none; 'patience' and "
                "'final: best' need it"
            )
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm: expected more than 0, found {self.max_grad_norm}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherConfig:
    """The `teacher` section of stages.yaml."""

    shard_size: int = 256
    """Expressions per shard and task, at least 1."""
    batch_size: int = 32
    """Expressions per forward pass, at least 1; decides the last bits, so it is part of the
    fingerprint."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the teacher runs."""
    flip: bool = False
    """Predict the mirror image too, left and right swapped in the sentence, and take the mean of
    the two logit margins; twice the time."""
    amp: bool = False
    """Run the network in bfloat16 where torch's autocast does."""
    encode_once: bool | None = None
    """Encode a sentence once for all expressions of a shard that say the same and, where the
    network allows, an image once for all its expressions. LAVT's words enter between the stages of
    its backbone, so that only its text is shared. None: where images can be shared. Changes the
    last bits."""

    def __post_init__(self) -> None:
        if self.shard_size < 1 or self.batch_size < 1:
            raise ValueError("shard_size and batch_size: expected at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """The `evaluate` section of stages.yaml."""

    splits: tuple[str, ...] = ("val",)
    """Splits that `run-rounds` evaluates after every round; the others wait for the last."""
    final_splits: tuple[str, ...] = ("val", "testA", "testB")
    """Splits evaluated after the last round, where the data set has them."""
    batch_size: int = 32
    """Expressions per forward pass, at least 1."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs."""
    amp: bool = False
    """Run the network in bfloat16 where torch's autocast does."""
    protocols: tuple[Literal["square", "image"], ...] = ("square", "image")
    """`square`: truth nearest-resized to the network's square, as LAVT and the paper do; `image`:
    the prediction brought to the image's original size."""
    headline: Literal["square", "image"] = "square"
    """The protocol that tables of rounds show and decisions go by."""
    sizes: Literal["coco", "share"] = "coco"
    """What small and medium objects are: below 32² and 96² pixels of the original image, or below
    2 % and 10 % of it."""
    resamples: int = 1000
    """Draws of images for the 95 % intervals, at least 0, which leaves them out."""
    seed: int = 0
    """Of those draws; at least 0."""
    sheet_rows: int = 3
    """Best, median and worst sentences that are drawn, so many of each; at least 0."""

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("resamples", 0), ("seed", 0), ("sheet_rows", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, found {getattr(self, name)}")
        if self.headline not in self.protocols or len(set(self.protocols)) < len(self.protocols):
            raise ValueError(
                f"protocols: expected each once and the headline {self.headline!r} among them, "
                f"found {', '.join(self.protocols) or 'none'}"
            )
        for split in (*self.splits, *self.final_splits):
            if split not in SPLITS:
                known = ", ".join(SPLITS)
                raise ValueError(f"splits: unknown {split!r}; known are {known}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StopConfig:
    """When `run-rounds` ends before its last round: no round has helped for a while."""

    metric: Literal["mIoU", "oIoU"] = "mIoU"
    """Of the first of `evaluate.splits`, by the headline's protocol."""
    patience: int = 1
    """Rounds in a row that may fail to beat the best one before, at least 1."""
    min_gain: float = 0.0
    """What a round must gain on the best one before to count, in [0, 1); 0.01 is one point."""

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"patience: expected at least 1, found {self.patience}")
        if not 0 <= self.min_gain < 1:
            raise ValueError(f"min_gain: expected a number in [0, 1), found {self.min_gain}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsConfig:
    """The `rounds` section of stages.yaml."""

    rounds: int = 2
    """Rounds after the burn-in, at least 1."""
    sheet_rows: int = 8
    """Expressions on the contact sheet that ends a run, at least 1."""
    calibrate: bool = False
    """Whether every round refines with the strategy that is best on held-out labelled images;
    costs `calibrate.folds` burn-ins. Where none beats the teacher, `refine.chain` stays."""
    stop: StopConfig | None = None
    """When to end before the last round; None does them all."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.sheet_rows < 1:
            raise ValueError("rounds and sheet_rows: expected at least 1")
