"""Shell: refine one round's teacher predictions into label shards."""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.candidates import CandidateReader, no_candidates
from pipeline.cells import Cells
from pipeline.engines import Engine
from pipeline.errors import ConfigError, ItemError, StoreError
from pipeline.images import canvas_size
from pipeline.manifest import Manifest, load_manifest
from pipeline.paths import RunPaths
from pipeline.records import FailedItem, Plan, require_rows, stored_plan, write_json
from pipeline.runner import Replace, ShardResult, StageSummary, run_stage, shards_of
from refine.evidence import ImageEvidence, expected_iou, gather, gather_image
from refine.labels import (
    STRATEGY_NAMES,
    empty_columns,
    encode_label,
    label_arrays,
)
from refine.quality import label_sums, report, truth_sums
from refine.strategies import ALWAYS_ANSWER, Chain, ParameterValue, parse_chain, refine
from refine.teacher_store import TeacherReader
from refine.upsample import sigmoid, upsample_align_corners

ALGORITHM_VERSION = 1
"""Raised whenever the same config and inputs would give other labels."""

VERB = "refine-labels"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainLink:
    """One strategy of the chain."""

    strategy: str
    """A name of `STRATEGIES`."""
    params: dict[str, ParameterValue] = field(default_factory=dict)
    """Its parameters; what is left out takes the paper's value."""
    min_gain: float | None = None
    """Accept its answer only if the expected IoU exceeds that of the teacher's mask by more than
    this; None accepts every answer."""


DEFAULT_CHAIN = (ChainLink(strategy="cpi-u"), ChainLink(strategy="pwa"))


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineConfig:
    """The `refine` section of stages.yaml."""

    chain: tuple[ChainLink, ...] = DEFAULT_CHAIN
    """Strategies in the order in which they are asked; the last must always answer."""
    shard_size: int = 256
    """Expressions per shard and task."""
    measure: bool = True
    """Compare labels with the truth where the data set knows it; changes no label, but
    `quality.json`, so that it is part of the fingerprint."""

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise ValueError(f"shard_size: expected at least 1, found {self.shard_size}")
        self.parsed_chain()

    def parsed_chain(self) -> Chain:
        """Give the chain with typed configs.

        Raises:
            ValueError: If the chain does not hold together.
        """
        return parse_chain(
            [(link.strategy, link.params, link.min_gain) for link in self.chain], "chain"
        )


def with_strategy(config: RefineConfig, strategy: str) -> RefineConfig:
    """Replace the chain by one strategy and the PWA fallback, as `--strategy` asks.

    Parameters that the config's chain gives for the strategy or the fallback are kept.
    """
    given = {link.strategy: link for link in config.chain}
    first = given.get(strategy, ChainLink(strategy=strategy))
    fallback = given.get("pwa", ChainLink(strategy="pwa"))
    chain = (first,) if strategy in ALWAYS_ANSWER else (first, fallback)
    try:
        return RefineConfig(chain=chain, shard_size=config.shard_size, measure=config.measure)
    except ValueError as error:
        raise ConfigError(f"--strategy {strategy}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class RefineWork:
    """Refine the expressions of one shard; a pure function of the stores it reads."""

    run_dir: Path
    number: int
    canvas: int
    config: RefineConfig

    def __call__(self, rows: range) -> ShardResult:
        """Compute the label columns of the given teacher rows."""
        teacher = self._teacher.read(rows)
        columns = empty_columns(len(rows), self.canvas)
        columns["expression"][:] = teacher["expression"]
        columns["image"][:] = self._manifest.expression_image[teacher["expression"]]
        sums: Counter[str] = Counter()
        failures: list[FailedItem] = []
        for image, group in groupby(range(len(rows)), key=lambda row: int(columns["image"][row])):
            evidence = gather_image(self._cells_of(image))
            for row in group:
                try:
                    if not teacher["valid"][row]:
                        raise ItemError("the teacher could not predict it; see its failures")
                    sums.update(self._refine_row(columns, row, evidence, teacher["logit"][row]))
                except StoreError:
                    raise
                except ValueError as error:
                    expression = int(columns["expression"][row])
                    item = self._manifest.describe_expression(expression)
                    failures.append(FailedItem(item=item, reason=str(error)))
                    sums["failed"] += 1
        return ShardResult(columns=columns, failures=tuple(failures), counters=dict(sums))

    def _refine_row(
        self, columns: dict[str, Any], row: int, image: ImageEvidence, logit_hw: Any
    ) -> dict[str, float]:
        logit_HW = upsample_align_corners(logit_hw, image.cells.size)
        evidence = gather(image, sigmoid(logit_HW), logit_HW > 0)
        refined = refine(evidence, self._chain)
        expected = expected_iou(evidence.prob_HW, refined.mask_HW)
        sums = label_sums(evidence, refined, expected)
        if self.config.measure:
            expression = int(columns["expression"][row])
            object_row = int(self._manifest.expression_object[expression])
            truth_HW = self._manifest.truth(object_row, self.canvas)
            if truth_HW is not None:
                sums |= truth_sums(evidence, refined, truth_HW)
        encode_label(columns, row, refined, expected)  # last: a row that fails keeps no label
        return sums

    def _cells_of(self, image: int) -> Cells:
        """Give an image's cells; an image whose candidates failed has none of them."""
        row = int(np.searchsorted(self._candidate_images, image))
        candidates = self._candidates.read(row)
        if candidates is None:
            height, width = (int(side) for side in self._manifest.image_size[image])
            candidates = no_candidates(canvas_size((height, width), self.canvas))
        return candidates.cells

    @cached_property
    def _manifest(self) -> Manifest:
        return load_manifest(RunPaths(self.run_dir).manifest)

    @cached_property
    def _candidate_images(self) -> Any:
        return self._manifest.images_of("train")

    @cached_property
    def _candidates(self) -> CandidateReader:
        return CandidateReader(RunPaths(self.run_dir).candidates)

    @cached_property
    def _teacher(self) -> TeacherReader:
        return TeacherReader(RunPaths(self.run_dir).teacher(self.number))

    @cached_property
    def _chain(self) -> Chain:
        return self.config.parsed_chain()


def plan_refinement(config: RefineConfig, run_dir: Path, number: int) -> Plan:
    """Freeze what one round's labels will be made of.

    Raises:
        StoreError: If candidates or teacher predictions are not there yet.
    """
    paths = RunPaths(run_dir)
    candidates = stored_plan(paths.candidates, "sam-candidates")
    teacher = stored_plan(paths.teacher(number), f"predict-teacher --round {number}")
    canvas = int(candidates["plan"]["canvas"])
    return Plan(
        stage=f"refine-{number}",
        store=paths.labels(number),
        specs=label_arrays(canvas),
        num_items=int(teacher["plan"]["num_items"]),
        shard_size=config.shard_size,
        unit="expressions",
        decides={
            "algorithm_version": ALGORITHM_VERSION,
            "canvas": canvas,
            "chain": config.parsed_chain(),
            "measure": config.measure,
            "inputs": {
                "manifest": load_manifest(paths.manifest).fingerprint,
                "candidates": candidates["fingerprint"],
                "teacher": teacher["fingerprint"],
            },
        },
        attributes={"strategies": list(STRATEGY_NAMES), "round": number, "weight_one": 255},
    )


def refine_labels(
    config: RefineConfig,
    run_dir: Path,
    number: int,
    *,
    engine: Engine | None = None,
    limit: int | None = None,
    replace: Replace = "never",
) -> tuple[StageSummary, dict[str, Any]]:
    """Refine a round's labels and write `labels.zarr` and `quality.json`.

    Args:
        config: Strategies and shard size.
        run_dir: Run directory with candidates and the round's teacher predictions.
        number: The round, from 1.
        engine: Where to run.
        limit: Only the shards with the first `limit` expressions.
        replace: Whether to make labels anew that are there.

    Returns:
        What was run, and the figures of `quality.json`.

    Raises:
        StoreError: If an input is incomplete or the labels were made otherwise.
    """
    paths = RunPaths(run_dir)
    plan = plan_refinement(config, run_dir, number)
    last = plan.num_shards if limit is None else shards_of(plan, limit)
    rows = range(min(plan.num_items, last * plan.shard_size))
    require_rows(paths.teacher(number), f"predict-teacher --round {number}", rows)
    require_rows(paths.candidates, "sam-candidates", _candidate_rows(run_dir, rows))
    work = RefineWork(run_dir=run_dir, number=number, canvas=plan.decides["canvas"], config=config)
    summary = run_stage(
        plan, work, engine=engine, limit=limit, replace=replace, made_by=f"{VERB} --round {number}"
    )
    quality = report(summary.counters)
    write_json(paths.quality(number), {"round": number, "chain": config.chain, **quality})
    return summary, quality


def _candidate_rows(run_dir: Path, rows: range) -> range:
    """Give the rows of `candidates.zarr` up to the last image that the expressions belong to."""
    manifest = load_manifest(RunPaths(run_dir).manifest)
    expressions = manifest.expressions_of("train", labelled=False)[: rows.stop]
    if not len(expressions):
        return range(0)
    image = manifest.expression_image[expressions[-1]]
    return range(int(np.searchsorted(manifest.images_of("train"), image)) + 1)
