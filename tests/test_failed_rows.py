"""What a stage writes of an item that takes its process with it: a failed row like any other."""

import numpy as np
import pytest

from pipeline.candidate_config import CandidatesConfig
from pipeline.candidate_stage import CandidatesWork, plan_candidates
from pipeline.candidates import FAILED
from pipeline.commands import Settings
from refine.labels import NO_LABEL
from refine.stage import RefineConfig, RefineWork
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
