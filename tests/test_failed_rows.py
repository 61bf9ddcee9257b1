"""What a stage writes of an item that takes its process with it: a failed row like any other."""

import shutil

import numpy as np
import pytest

from pipeline.attempts import Attempts, write_attempts
from pipeline.candidate_config import CandidatesConfig
from pipeline.candidate_stage import CandidatesWork, plan_candidates
from pipeline.candidates import FAILED
from pipeline.commands import Settings
from pipeline.paths import RunPaths
from pipeline.records import done_path
from pipeline.runner import run_stage
from pipeline.store import open_store
from refine.labels import NO_LABEL
from refine.stage import RefineConfig, RefineWork, plan_refinement
from tests.pipeline.null_stages import DeadlyAt
from train.config import TeacherConfig
from train.predict import TeacherWork, passes_of, plan_teacher


def work_of(stage, run_dir, small_config):
    settings = Settings(small_config, run_dir, ())
    if stage == "candidates":
        config = settings.section("candidates", CandidatesConfig)
        sha256 = plan_candidates(config, run_dir).decides["source_sha256"]
        return CandidatesWork(run_dir=run_dir, config=config, source_sha256=sha256)
    if stage == "refine":
        config = settings.section("refine", RefineConfig)
        return RefineWork(run_dir=run_dir, number=1, canvas=256, config=config)
    config = settings.section("teacher", TeacherConfig)
    _, trained = plan_teacher(config, run_dir, 1)
    return TeacherWork(
        run_dir=run_dir,
        student=trained.folder,
        fold=None,
        weights_sha256=trained.weights_sha256,
        batch_size=config.batch_size,
        device="cpu",
        passes=passes_of(config),
    )


@pytest.mark.parametrize(
    ("stage", "verdict", "failed"),
    [
        ("candidates", "num_candidates", FAILED),
        ("refine", "source", NO_LABEL),
        ("teacher", "valid", 0),
    ],
)
def test_a_failed_row_fits_the_store_and_names_the_item(
    finished_run, small_config, stage, verdict, failed
):
    work = work_of(stage, finished_run[0], small_config)
    done, lost = work(range(2, 3)), work.failed_row(2, "its process was ended")
    assert lost.columns.keys() == done.columns.keys()
    identity = "image" if stage == "candidates" else "expression"
    for name, column in lost.columns.items():
        if name != "membership":  # as long as the masks need
            assert column.shape == done.columns[name].shape, name
        assert column.dtype == done.columns[name].dtype, name
    assert np.array_equal(lost.columns[identity], done.columns[identity])
    assert lost.columns[verdict][0] == failed
    assert done.columns[verdict][0] != failed
    assert [failure.reason for failure in lost.failures] == ["its process was ended"]
    assert lost.failures[0].item
    assert lost.counters == {"failed": 1}


def plan_of(stage, run_dir, small_config):
    settings = Settings(small_config, run_dir, ())
    if stage == "candidates":
        return plan_candidates(settings.section("candidates", CandidatesConfig), run_dir)
    if stage == "refine":
        return plan_refinement(settings.section("refine", RefineConfig), run_dir, 1)
    return plan_teacher(settings.section("teacher", TeacherConfig), run_dir, 1)[0]


@pytest.mark.parametrize(
    ("stage", "verdict", "failed"),
    [
        ("refine", "source", NO_LABEL),
        # Every process that is ended takes torch with it: half a minute each.
        pytest.param("candidates", "num_candidates", FAILED, marks=pytest.mark.slow),
        pytest.param("teacher", "valid", 0, marks=pytest.mark.slow),
    ],
)
def test_a_deadly_item_of_a_real_stage_is_cut_out_of_its_shard(
    finished_run, small_config, tmp_path, stage, verdict, failed
):
    """Bisection in processes of their own, with SAM, the network and the strategies in them."""
    run_dir = tmp_path / "run"
    shutil.copytree(finished_run[0], run_dir)
    plan, row = plan_of(stage, run_dir, small_config), 1
    done_path(plan.store, 0).unlink()
    write_attempts(plan.store, 0, Attempts(shard=3))
    work = DeadlyAt(work_of(stage, run_dir, small_config), row)
    summary = run_stage(plan, work, made_by=stage)
    assert summary.complete
    assert [failure.reason for failure in summary.failures] == [
        "given up: its process was ended by SIGSEGV"
    ]
    whole = RunPaths(finished_run[0]), RunPaths(run_dir)
    place = {"candidates": "candidates", "refine": "labels", "teacher": "teacher"}[stage]
    before, after = (
        open_store(paths.candidates if stage == "candidates" else getattr(paths, place)(1))
        for paths in whole
    )
    others = [other for other in range(plan.num_items) if other != row]
    assert after[verdict][row] == failed
    for spec in plan.specs:
        if spec.payload or spec.name.endswith("_offset"):
            continue  # where the failed image's masks were, the next image's are now
        old, new = before[spec.name][:][others], after[spec.name][:][others]
        if spec.name in ("logit", "confidence"):  # batches of other sizes: other last bits
            assert np.allclose(old.astype(float), new.astype(float), atol=5e-3), spec.name
        else:
            assert np.array_equal(old, new), spec.name
