"""The sections of stages.yaml that concern networks: train, teacher, evaluate, rounds."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.manifest import SPLITS
from train.augment import AugmentConfig
from train.networks import NETWORKS, lavt_config

OptionValue = int | float | bool | tuple[int, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """Which network is trained."""

    name: str = "lavt"
    """An entry of `NETWORKS`."""
    size: str = "toy"
    """A size of that network."""
    options: dict[str, OptionValue] = field(default_factory=dict)
    """Values that replace the size's own."""
    tokenizer: Path | None = None
    """A vocab.txt, a folder, or a name on the hub; None builds a word vocabulary from the training
    expressions."""
    max_tokens: int = 20
    """Tokens per sentence, special ones included; longer sentences are cut."""

    def __post_init__(self) -> None:
        if self.name not in NETWORKS:
            raise ValueError(f"name: unknown {self.name!r}; known are {', '.join(NETWORKS)}")
        positions = lavt_config(self.size, self.options).text_positions
        if not 3 <= self.max_tokens <= positions:
            raise ValueError(
                f"max_tokens: expected 3 to {positions} (text_positions), found {self.max_tokens}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseConfig:
    """How long and how fast a network is trained in one round."""

    steps: int = 400
    """Optimizer updates."""
    learning_rate: float = 5e-5
    """AdamW's at the start; falls to exactly 0 by the poly rule."""
    labelled_batch: int = 3
    """Labelled expressions per step."""
    unlabelled_batch: int = 3
    """Expressions with a refined label per step; unused in round 0."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from 0."""

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
    """Of weights, order and augmentation."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """The network."""
    burn_in: PhaseConfig = field(default_factory=PhaseConfig)
    """Round 0: labelled data only."""
    student: PhaseConfig = field(default_factory=PhaseConfig)
    """Rounds 1 and later: labelled data and refined labels; starts from the teacher."""
    weight_decay: float = 0.01
    """AdamW's, on all but norms, biases and position tables."""
    ema_decay: float = 0.996
    """Share of the old teacher that is kept at every step, in [0, 1); the paper's alpha."""
    ema_warmup: bool = False
    """Let the decay rise with the steps, for short trainings."""
    class_weights: tuple[float, float] = (0.9, 1.1)
    """Of background and foreground in the cross entropy, as in the released code."""
    dice: float = 0.0
    """Factor of a dice loss beside the cross entropy; SemiRES has none."""
    labelled_weight: float = 1.0
    """Factor of the supervised loss; the paper gives no value."""
    unlabelled_weight: float = 1.0
    """Factor of the loss on refined labels; the paper gives no value."""
    balance: Literal["per_sample", "branch"] = "per_sample"
    """Mean over refined labels, or half for matched and half for PWA labels as released."""
    max_grad_norm: float | None = 1.0
    """Norm to which gradients are clipped; None switches it off."""
    labelled_view: Literal["plain", "weak", "strong"] = "plain"
    """Augmentation of labelled images; the released code has none."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Weak and strong views; the student sees the strong one."""
    save_every: int = 200
    """Steps between checkpoints: what a kill can cost."""
    keep_checkpoints: int = 2
    """Checkpoints kept while training."""
    num_threads: int | None = None
    """CPU threads of torch; None leaves torch's choice. On a CPU it decides the last bits."""
    loader_workers: int = 0
    """Processes that decode and augment; 0 does it in the training process."""
    cache_bytes: int = 1 << 28
    """Room for decoded images in each loading process, bytes."""
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
        if self.num_threads is not None and self.num_threads < 1:
            raise ValueError(f"num_threads: expected at least 1, found {self.num_threads}")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm: expected more than 0, found {self.max_grad_norm}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherConfig:
    """The `teacher` section of stages.yaml."""

    shard_size: int = 256
    """Expressions per shard and task."""
    batch_size: int = 32
    """Expressions per forward pass; decides the last bits, so it is part of the fingerprint."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the teacher runs."""

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
    """Expressions per forward pass."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, found {self.batch_size}")
        for split in (*self.splits, *self.final_splits):
            if split not in SPLITS:
                known = ", ".join(SPLITS)
                raise ValueError(f"splits: unknown {split!r}; known are {known}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsConfig:
    """The `rounds` section of stages.yaml."""

    rounds: int = 2
    """Rounds after the burn-in."""
    sheet_rows: int = 8
    """Expressions on the contact sheet that ends a run."""
    calibrate: bool = False
    """Whether every round refines with the strategy that is best on held-out labelled images;
    costs `calibrate.folds` burn-ins. Where none beats the teacher, `refine.chain` stays."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.sheet_rows < 1:
            raise ValueError("rounds and sheet_rows: expected at least 1")
