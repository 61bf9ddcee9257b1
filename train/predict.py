"""Shell: the teacher's predictions, into `teacher.zarr`."""

import functools
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from pipeline.devices import resolve_device, use_threads
from pipeline.engines import REMOTE, Engine
from pipeline.errors import ConfigError, StoreError
from pipeline.folds import Fold, held_out_images
from pipeline.manifest import Manifest, load_manifest
from pipeline.paths import RunPaths
from pipeline.places import Place
from pipeline.records import FailedItem, Plan
from pipeline.runner import Replace, ShardResult, StageSummary, run_stage
from refine.teacher_store import confidence_of, encode_logits, teacher_arrays
from train.config import TeacherConfig
from train.networks import NETWORKS
from train.predictor import Passes, encodes_once, predictor_of
from train.text import TextEncoder
from train.trained import Trained, load_trained, read_trained
from train.training_folder import read_whole

ALGORITHM_VERSION = 2
"""Raised whenever the same weights and inputs would give other predictions."""


@functools.lru_cache(maxsize=1)
def _load(
    folder: Place, weights_sha256: str, device: str
) -> tuple[Trained, nn.Module, TextEncoder]:
    """Build the network once per process; the hash in the key keeps rounds apart."""
    trained = read_trained(folder, "train-student")
    if trained.weights_sha256 != weights_sha256:
        raise StoreError(f"{folder}: weights changed since this stage was planned; run it again")
    network, text = load_trained(trained, device)
    return trained, network, text


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherWork:
    """Predict the expressions of one shard."""

    run_dir: Place
    student: Place
    fold: Fold | None
    weights_sha256: str
    batch_size: int
    device: str
    passes: Passes

    def __call__(self, rows: range) -> ShardResult:
        """Give the columns of `teacher.zarr` for the given rows."""
        use_threads(1)  # on a CPU the last bits depend on the number of threads
        paths = RunPaths(self.run_dir)
        device = resolve_device(self.device)
        trained, network, text = _load(self.student, self.weights_sha256, device)
        manifest = load_manifest(paths.manifest)
        manifest.require_images()
        expressions = expressions_to_predict(manifest, self.fold)[rows.start : rows.stop]
        columns: dict[str, npt.NDArray[Any]] = {
            "expression": expressions,
            "valid": np.zeros(len(rows), np.uint8),
            "confidence": np.zeros(len(rows), np.float32),
            "logit": np.zeros((len(rows), *trained.stride_size), np.float16),
        }
        predictor = predictor_of(trained, manifest, (network, text), self.batch_size, self.passes)
        failures: list[FailedItem] = []
        counters: dict[str, float] = defaultdict(float)
        for positions, margin_Bhw, failed in predictor.margins(expressions):
            if len(positions):
                logit_Bhw = encode_logits(margin_Bhw)
                columns["logit"][positions] = logit_Bhw
                columns["confidence"][positions] = confidence_of(logit_Bhw)
                columns["valid"][positions] = 1
                counters["foreground_share"] += float((margin_Bhw > 0).mean(axis=(1, 2)).sum())
            counters["predicted"] += len(positions)
            counters["failed"] += len(failed)
            for position, reason in failed.items():
                item = manifest.describe_expression(int(expressions[position]))
                failures.append(FailedItem(item=item, reason=reason))
        return ShardResult(columns=columns, failures=tuple(failures), counters=dict(counters))

    def failed_row(self, row: int, reason: str) -> ShardResult:
        """Give the columns of one expression that has failed, without touching it."""
        manifest = load_manifest(RunPaths(self.run_dir).manifest)
        expression = expressions_to_predict(manifest, self.fold)[row : row + 1]
        size = read_trained(self.student, "train-student").stride_size
        columns: dict[str, npt.NDArray[Any]] = {
            "expression": expression,
            "valid": np.zeros(1, np.uint8),
            "confidence": np.zeros(1, np.float32),
            "logit": np.zeros((1, *size), np.float16),
        }
        item = manifest.describe_expression(int(expression[0]))
        failure = FailedItem(item=item, reason=reason)
        return ShardResult(columns=columns, failures=(failure,), counters={"failed": 1})


def expressions_to_predict(manifest: Manifest, fold: Fold | None) -> npt.NDArray[np.int64]:
    """List the manifest rows of a teacher's expressions, in image order.

    All unlabelled ones; or for a fold the labelled ones of its images, those too whose truth is
    not known: they are context of the others.
    """
    if fold is None:
        return manifest.expressions_of("train", labelled=False)
    rows = manifest.expressions_of("train", labelled=True)
    images = held_out_images(manifest.labelled_images(), fold)
    return rows[np.isin(manifest.expression_image[rows], images)]


def plan_teacher(
    config: TeacherConfig, run_dir: Place, number: int, fold: Fold | None = None
) -> tuple[Plan, Trained]:
    """Freeze what one round's predictions, or a fold's, will be made of.

    Raises:
        ConfigError: If a fold is asked of a later round.
        ManifestError: If the manifest is missing or a file of it is damaged.
        StoreError: If the previous round, or the fold's burn-in, is not trained, or damaged.
    """
    if number < 1:
        raise StoreError(f"--round {number}: the first teacher predicts in round 1")
    if fold is not None and number != 1:
        raise ConfigError(f"--fold {fold}: folds are predicted in round 1, found --round {number}")
    paths = RunPaths(run_dir)
    manifest = load_manifest(paths.manifest, verify=True)
    if fold is None:
        trained = read_whole(paths.student(number - 1), f"train-student --round {number - 1}")
    else:
        trained = read_whole(paths.fold_student(fold), f"train-student --fold {fold}")
        made_of = (trained.plan.get("held_out"), trained.plan["inputs"]["manifest"])
        if made_of != (str(fold), manifest.fingerprint):  # it may have seen what it is to predict
            raise StoreError(
                f"{trained.folder}: trained on another data set or fold; run "
                f"'train-student --fold {fold} --force'"
            )
    plan = Plan(
        stage=f"teacher-{number}" if fold is None else f"fold-{fold}",
        store=paths.teacher(number) if fold is None else paths.fold_teacher(fold),
        specs=teacher_arrays(trained.stride_size),
        num_items=len(expressions_to_predict(manifest, fold)),
        shard_size=config.shard_size,
        unit="expressions",
        decides={
            "algorithm_version": ALGORITHM_VERSION,
            "batch_size": config.batch_size,
            **_departures(config, trained),
            **({} if fold is None else {"held_out": str(fold)}),
            "inputs": {
                "manifest": manifest.fingerprint,
                "student": trained.fingerprint,
                "weights_sha256": trained.weights_sha256,
            },
        },
        attributes={"round": number, "decision": "foreground where logit > 0"},
    )
    return plan, trained


def passes_of(config: TeacherConfig) -> Passes:
    """Pick how the network is run."""
    return Passes(flip=config.flip, amp=config.amp, encode_once=config.encode_once)


def _departures(config: TeacherConfig, trained: Trained) -> dict[str, bool]:
    """List what is not the plain forward pass, so that plain stores keep their fingerprint."""
    once = encodes_once(passes_of(config), NETWORKS[trained.network.name])
    found = {"flip": config.flip, "amp": config.amp, "encode_once": once}
    return {name: chosen for name, chosen in found.items() if chosen}


def predict_teacher(
    config: TeacherConfig,
    run_dir: Place,
    number: int,
    *,
    engine: Engine | None = None,
    limit: int | None = None,
    replace: Replace = "never",
    fold: Fold | None = None,
) -> StageSummary:
    """Write `round-R/teacher.zarr`, one row per unlabelled training expression.

    With a fold: `calibration/fold-K-of-N/teacher.zarr`, one row per labelled expression of it.

    Args:
        config: Batch and shard size.
        run_dir: Run directory; round R - 1 must be trained.
        number: The round R, from 1.
        engine: Where to run.
        limit: Only the shards with the first `limit` expressions.
        replace: Whether to make predictions anew that are there.
        fold: Predict the labelled images of this fold, by the burn-in that has not seen them.

    Raises:
        StoreError: If the previous round is missing or the store was made otherwise.
    """
    plan, trained = plan_teacher(config, run_dir, number, fold)
    work = TeacherWork(
        run_dir=run_dir,
        student=trained.folder,
        fold=fold,
        weights_sha256=trained.weights_sha256,
        batch_size=config.batch_size,
        device=config.device,
        passes=passes_of(config),
    )
    if engine is None or engine.kind not in REMOTE:
        resolve_device(config.device)  # refuses before anything is replaced
    return run_stage(
        plan,
        work,
        engine=engine,
        limit=limit,
        replace=replace,
        made_by=_made_by(number, fold),
    )


def _made_by(number: int, fold: Fold | None) -> str:
    """Give the command that makes these predictions."""
    return f"predict-teacher --round {number}" if fold is None else f"predict-teacher --fold {fold}"
