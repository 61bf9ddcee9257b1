"""Shell: micro-batches: samples stacked, in the order of the steps, whoever loads them."""

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from pipeline.errors import SemiresError
from train.data import RoundDataset, Sample
from train.order import Draw, deal, draws_at


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of one micro-batch, labelled ones first; made by `collate`."""

    image: torch.Tensor
    """(B, 3, S, S) float32, normalised."""
    label: torch.Tensor
    """(B, S, S) int64: 0, 1 or 255 (ignored)."""
    weight: torch.Tensor
    """(B, S, S) float32 in [0, 1]."""
    token_ids: torch.Tensor
    """(B, L) int64."""
    token_mask: torch.Tensor
    """(B, L) int64, 1 on tokens."""
    refined: torch.Tensor
    """(B,) bool, whether a candidate decided the label; True for labelled samples."""
    valid: torch.Tensor
    """(B,) bool, False where the sample cannot be read: a blank one with an ignored label."""
    rows: tuple[int, ...]
    """Manifest rows of the expressions."""
    num_labelled: int
    """Samples with a human label."""
    damage: tuple[str, ...]
    """What was wrong with the samples that cannot be read."""

    def to(self, device: str) -> "Batch":
        """Bring the tensors to a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Lock the tensors in memory, which makes the way to a GPU faster; called by the loader."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {k: change(v) for k, v in values.items() if torch.is_tensor(v)}
        return replace(self, **changed)


class StepSampler:
    """One process's draws of every step from `start` on, a micro-batch each."""

    def __init__(
        self,
        *,
        seed: int,
        number: int,
        steps: range,
        counts: tuple[int, int],
        batch: tuple[int, int],
        accumulate: int = 1,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self._arguments = (seed, number, counts, batch)
        self._steps = steps
        self._dealing = (accumulate, rank, processes)

    def __len__(self) -> int:
        return len(self._steps) * self._dealing[0]

    def __iter__(self) -> Iterator[list[Draw]]:
        seed, number, counts, batch = self._arguments
        for step in self._steps:
            yield from deal(draws_at(seed, number, step, counts, batch), *self._dealing)


def collate(samples: list[Sample]) -> Batch:
    """Stack samples into tensors; labels become int64."""
    names = samples[0].arrays.keys()
    stacked = {name: np.stack([sample.arrays[name] for sample in samples]) for name in names}
    stacked["label"] = stacked["label"].astype(np.int64)
    return Batch(
        **{name: torch.from_numpy(array) for name, array in stacked.items()},
        valid=torch.tensor([sample.damage is None for sample in samples]),
        rows=tuple(sample.row for sample in samples),
        num_labelled=sum(sample.labelled for sample in samples),
        damage=tuple(sample.damage for sample in samples if sample.damage is not None),
    )


def make_loader(
    dataset: RoundDataset, sampler: StepSampler, num_workers: int, *, pin_memory: bool = False
) -> "DataLoader[Batch]":
    """Give a loader whose batches do not depend on the number of workers."""
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        multiprocessing_context="spawn" if num_workers else None,
        persistent_workers=num_workers > 0,
        worker_init_fn=_outlive_sigterm,
        pin_memory=pin_memory,
    )


def _outlive_sigterm(_worker: int) -> None:
    """Leave SIGTERM, which a scheduler sends to every process, to the trainer: it ends the step."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def next_batches(loader: Iterator[Batch], count: int) -> list[Batch]:
    """Take a step's micro-batches from a loader.

    Raises:
        SemiresError: If a sample cannot be read, without a loading process's traceback; or if such
            a process was killed.
    """
    try:
        return [next(loader) for _ in range(count)]
    except SemiresError as error:
        lines = str(error).strip().splitlines()
        raise type(error)(lines[-1].removeprefix("pipeline.errors.")) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise SemiresError(
            f"a loading process ended ({str(error).splitlines()[0]}); if memory was short, lower "
            f"train.loader_workers or train.cache_bytes, and run the same command again"
        ) from error
