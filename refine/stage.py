"""Shell: refine one round's teacher predictions into label shards."""

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.config import parse_config
from pipeline.engines import Engine
from pipeline.errors import ConfigError, ItemError, StoreError
from pipeline.json_files import holds_json
from pipeline.manifest import Manifest, images_fingerprint, load_manifest
from pipeline.paths import RunPaths
from pipeline.places import Place
from pipeline.records import (
    FailedItem,
    Plan,
    content_fingerprint,
    read_json,
    require_rows,
    stored_plan,
    write_json,
)
from pipeline.runner import Replace, ShardResult, StageSummary, run_stage, shards_of
from refine.evidence import ImageEvidence, expected_iou
from refine.labels import STRATEGY_NAMES, empty_columns, encode_label, label_arrays
from refine.plots import write_quality_plot
from refine.predictions import Prediction, Predictions
from refine.probability import ProbabilityConfig
from refine.quality import label_sums, report, truth_sums
from refine.strategies import ALWAYS_ANSWER, Chain, ChainLink, parse_chain, refine

ALGORITHM_VERSION = 2
"""Raised whenever the same config and inputs would give other labels."""

VERB = "refine-labels"


DEFAULT_CHAIN = (ChainLink(strategy="cpi-u"), ChainLink(strategy="pwa"))


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineConfig:
    """The `refine` section of stages.yaml."""

    chain: tuple[ChainLink, ...] = DEFAULT_CHAIN
    """Strategies in the order in which they are asked; the last must always answer."""
    probability: ProbabilityConfig = field(default_factory=ProbabilityConfig)
    """How the probability that strategies see is made of the teacher's logits."""
    shard_size: int = 256
    """Expressions per shard and task, at least 1."""
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
        return parse_chain(self.chain, "chain")


def with_strategy(config: RefineConfig, strategy: str) -> RefineConfig:
    """Replace the chain by one strategy and the PWA fallback, as `--strategy` asks.

    Parameters that the config's chain gives for the strategy or the fallback are kept.
    """
    given = {link.strategy: link for link in config.chain}
    first = given.get(strategy, ChainLink(strategy=strategy))
    fallback = given.get("pwa", ChainLink(strategy="pwa"))
    chain = (first,) if strategy in ALWAYS_ANSWER else (first, fallback)
    try:
        return dataclasses.replace(config, chain=chain)
    except ValueError as error:
        raise ConfigError(f"--strategy {strategy}: {error}") from error


def config_of_round(config: RefineConfig, run_dir: Place, number: int) -> RefineConfig:
    """Give the config with the chain that calibration chose for the round, where it was applied.

    Raises:
        StoreError: If it was chosen for another data set, or the file is damaged.
    """
    path = RunPaths(run_dir).chosen_strategy(number)
    if not path.exists():
        return config
    document = read_json(path)
    again = f"run 'refine-labels calibrate --round {number} --apply' again, or remove the file"
    if not isinstance(document, dict) or "chain" not in document:
        raise StoreError(f"{path}: holds no chain; {again}")
    if document.get("inputs") != inputs_of_choice(run_dir):
        raise StoreError(f"{path}: chosen for another data set or other candidates; {again}")
    chosen = {name: document[name] for name in ("chain", "probability") if name in document}
    parsed = parse_config(RefineConfig, chosen, str(path))
    return dataclasses.replace(config, chain=parsed.chain, probability=parsed.probability)


def inputs_of_choice(run_dir: Place) -> dict[str, str]:
    """Name the data set and the candidates that a choice of strategy holds for."""
    paths = RunPaths(run_dir)
    manifest = load_manifest(paths.manifest)
    candidates = candidates_plan(paths.candidates, manifest)
    return {"manifest": manifest.fingerprint, "candidates": content_fingerprint(candidates)}


def candidates_plan(store: Place, manifest: Manifest) -> dict[str, Any]:
    """Read the plan of the candidates.

    Raises:
        StoreError: If there are none, or they are of other images.
    """
    document = stored_plan(store, "sam-candidates")
    if document["plan"]["inputs"]["images"] != images_fingerprint(manifest):
        raise StoreError(f"{store}: candidates of other images; run 'sam-candidates --force'")
    return document


@dataclass(frozen=True, kw_only=True)
class RefineWork:
    """Refine the expressions of one shard; a pure function of the stores it reads."""

    run_dir: Place
    number: int
    canvas: int
    config: RefineConfig

    def __call__(self, rows: range) -> ShardResult:
        """Compute the label columns of the given teacher rows."""
        columns = empty_columns(len(rows), self.canvas)
        sums: Counter[str] = Counter()
        failures: list[FailedItem] = []
        for image, evidence, predictions in self._predictions.by_image(rows):
            for prediction in predictions:
                row = prediction.row - rows.start
                columns["expression"][row] = prediction.expression
                columns["image"][row] = image
                try:
                    if prediction.problem is not None:
                        raise ItemError(prediction.problem)
                    sums.update(self._refine_row(columns, row, evidence, prediction))
                except StoreError:
                    raise
                except ValueError as error:
                    item = self._predictions.manifest.describe_expression(prediction.expression)
                    failures.append(FailedItem(item=item, reason=str(error)))
                    sums["failed"] += 1
        return ShardResult(columns=columns, failures=tuple(failures), counters=dict(sums))

    def failed_row(self, row: int, reason: str) -> ShardResult:
        """Give the columns of one expression that has failed, without touching it."""
        manifest = load_manifest(RunPaths(self.run_dir).manifest)
        expression = int(manifest.expressions_of("train", labelled=False)[row])
        columns = empty_columns(1, self.canvas)
        columns["expression"][0] = expression
        columns["image"][0] = manifest.expression_image[expression]
        failure = FailedItem(item=manifest.describe_expression(expression), reason=reason)
        return ShardResult(columns=columns, failures=(failure,), counters={"failed": 1})

    def _refine_row(
        self, columns: dict[str, Any], row: int, image: ImageEvidence, prediction: Prediction
    ) -> dict[str, float]:
        evidence = self._predictions.see(image, prediction, self.config.probability)
        refined = refine(evidence, self._chain)
        expected = expected_iou(evidence, refined.mask_HW)
        sums = label_sums(evidence, refined, expected)
        if self.config.measure:
            truth_HW = self._predictions.truth(prediction, self.canvas)
            if truth_HW is not None:
                sums |= truth_sums(image, refined, evidence.label_HW, truth_HW)
        encode_label(columns, row, refined, expected)  # last: a row that fails keeps no label
        return sums

    @cached_property
    def _predictions(self) -> Predictions:
        return Predictions(
            run_dir=self.run_dir,
            teacher=RunPaths(self.run_dir).teacher(self.number),
            contexts=(self.config.probability.context,),
        )

    @cached_property
    def _chain(self) -> Chain:
        return self.config.parsed_chain()


def plan_refinement(config: RefineConfig, run_dir: Place, number: int) -> Plan:
    """Freeze what one round's labels will be made of.

    Raises:
        ManifestError: If the manifest is missing or a file of it is damaged.
        StoreError: If candidates or teacher predictions are not there yet.
    """
    paths = RunPaths(run_dir)
    manifest = load_manifest(paths.manifest, verify=True)
    candidates = candidates_plan(paths.candidates, manifest)
    teacher = stored_plan(paths.teacher(number), f"predict-teacher --round {number}")
    if teacher["plan"]["inputs"]["manifest"] != manifest.fingerprint:
        raise StoreError(
            f"{paths.teacher(number)}: predictions of another data set; run 'predict-teacher "
            f"--round {number} --force'"
        )
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
            "probability": config.probability,
            "measure": config.measure,
            "inputs": {
                "manifest": manifest.fingerprint,
                "candidates": content_fingerprint(candidates),
                "teacher": content_fingerprint(teacher),
            },
        },
        attributes={"strategies": list(STRATEGY_NAMES), "round": number, "weight_one": 255},
    )


def refine_labels(
    config: RefineConfig,
    run_dir: Place,
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
    looks_around = any(link.strategy == "drop" for link in config.chain)
    if looks_around or config.probability.context != "none":  # at labels of other shards
        require_rows(paths.teacher(number), f"predict-teacher --round {number}", None)
    work = RefineWork(run_dir=run_dir, number=number, canvas=plan.decides["canvas"], config=config)
    summary = run_stage(
        plan, work, engine=engine, limit=limit, replace=replace, made_by=f"{VERB} --round {number}"
    )
    quality = report(summary.counters)
    document = {"round": number, "chain": config.chain, "probability": config.probability}
    if not holds_json(paths.quality(number), document | quality):
        write_quality_plot(quality, paths.quality(number).with_suffix(".png"))
        write_json(paths.quality(number), document | quality)
    return summary, quality


def _candidate_rows(run_dir: Place, rows: range) -> range:
    """Give the rows of `candidates.zarr` up to the last image that the expressions belong to."""
    manifest = load_manifest(RunPaths(run_dir).manifest)
    expressions = manifest.expressions_of("train", labelled=False)[: rows.stop]
    if not len(expressions):
        return range(0)
    image = manifest.expression_image[expressions[-1]]
    return range(int(np.searchsorted(manifest.images_of("train"), image)) + 1)
