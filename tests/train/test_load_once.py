"""A network is loaded once by each process, however many shards it is to do."""

import dataclasses
import os
import shutil

import pytest

from pipeline.candidate_config import CandidatesConfig
from pipeline.candidate_sources import forget_loaded
from pipeline.candidate_stage import sam_candidates
from pipeline.commands import Settings
from pipeline.engines import Engine, shared_workers
from pipeline.sam.models import SamModel
from train import predict
from train.config import TeacherConfig
from train.predict import predict_teacher

SHARDS = 5


@pytest.fixture
def run_dir(finished_run, tmp_path):
    """The finished run without candidates and round 1's predictions."""
    shutil.copytree(finished_run[0], tmp_path / "run")
    for name in ("candidates", "round-1/teacher"):
        for kind in ("zarr", "stage"):
            shutil.rmtree(tmp_path / "run" / f"{name}.{kind}")
    return tmp_path / "run"


def note_loads(folder):
    """Have this process note on a line of a file of its own whenever it loads a network."""
    teacher, sam = predict.load_trained, SamModel.load

    def note(kind, load):
        def noted(*arguments):
            with (folder / f"{kind}-{os.getpid()}").open("a") as file:
                file.write("loaded\n")
            return load(*arguments)

        return noted

    predict.load_trained = note("teacher", teacher)
    SamModel.load = note("sam", sam)


@pytest.fixture
def loads(tmp_path, monkeypatch):
    """A folder in which this process, and those told to, note what they load."""
    forget_loaded()  # a test before may have ended with the same network in memory
    predict._load.cache_clear()
    monkeypatch.setattr(predict, "load_trained", predict.load_trained)
    monkeypatch.setattr(SamModel, "load", SamModel.load)
    folder = tmp_path / "loads"
    folder.mkdir()
    note_loads(folder)
    return folder


def noted(folder, kind):
    """Give how often each process has loaded a network of a kind, by process id."""
    return {
        int(file.name.rsplit("-", 1)[1]): len(file.read_text().splitlines())
        for file in folder.glob(f"{kind}-*")
    }


def teacher_in_shards(config, run_dir, engine):
    """Predict the first shards of round 1."""
    found = Settings(config, run_dir, ()).section("teacher", TeacherConfig)
    small = dataclasses.replace(found, shard_size=8)
    summary = predict_teacher(small, run_dir, 1, engine=engine, limit=8 * SHARDS)
    assert summary.shards_done_now == SHARDS


def candidates_in_shards(config, run_dir, engine):
    """Make the candidates of some images, each in a shard of its own."""
    found = Settings(config, run_dir, ()).section("candidates", CandidatesConfig)
    small = dataclasses.replace(found, shard_size=1)
    summary = sam_candidates(small, run_dir, engine=engine, limit=SHARDS)
    assert summary.shards_done_now == SHARDS


STAGES = {"teacher": teacher_in_shards, "sam": candidates_in_shards}


@pytest.mark.parametrize("kind", STAGES)
def test_here_a_network_is_loaded_once(run_dir, small_config, loads, kind):
    STAGES[kind](small_config, run_dir, Engine())
    assert noted(loads, kind) == {os.getpid(): 1}


@pytest.mark.dask
def test_each_worker_loads_a_network_once(run_dir, small_config, loads):
    engine = Engine(workers=2)
    with shared_workers() as shared:
        workers = set(shared.client(engine).run(os.getpid).values())
        shared.client(engine).run(note_loads, loads)
        for kind, stage in STAGES.items():
            stage(small_config, run_dir, engine)
            found = noted(loads, kind)
            assert 1 <= len(found) <= 2
            assert set(found) <= workers
            assert set(found.values()) == {1}
