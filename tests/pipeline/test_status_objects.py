"""A bucket can be a run: it has no name of its own, as the root of a disk has none."""

from pathlib import Path

import pytest
from object_server import make_bucket, put, used_here

from pipeline.errors import StoreError
from pipeline.places import place
from pipeline.prepare import prepare_data
from pipeline.run_contents import find_stores, is_store
from pipeline.runner import run_stage
from pipeline.status import failures_of, run_status
from tests.pipeline.null_stages import Slow, null_plan
from tests.pipeline.small_data import jsonl_config, line, write_image


@pytest.fixture
def bucket(tmp_path):
    """Give an empty bucket as a place, and its name."""
    with used_here(tmp_path / "cache"):
        name = make_bucket()
        yield place(f"s3://{name}/"), name


def test_neither_a_bucket_nor_the_root_is_a_store(bucket):
    assert not is_store(Path("/"))
    assert not is_store(bucket[0])
    with pytest.raises(StoreError, match="no store there"):
        find_stores(bucket[0])


def test_a_bucket_can_be_a_run(bucket, tmp_path):
    write_image(tmp_path / "good.png")
    run_dir = tmp_path / "run"
    prepare_data(jsonl_config(tmp_path, [line("good.png", 1), line("gone.png", 2)]), run_dir)
    run_stage(null_plan(run_dir), Slow(failing=(3,)), made_by="squares")
    for path in run_dir.rglob("*"):
        if path.is_file():
            put(bucket[1], path.relative_to(run_dir).as_posix(), path.read_bytes())
    manifest, squares = run_status(bucket[0])
    assert (manifest.state, manifest.items, manifest.failed_items) == ("done", 1, 1)
    assert (squares.state, squares.shards, squares.failed_items) == ("done", 5, 1)
    assert [failure.stage for failure in failures_of(bucket[0])] == ["prepare-data", "squares"]
