"""Real processes are killed, real files damaged, real disks filled; nothing is lost.

The short version of `python -m benchmarks.faults`; the long one is in test_faults_long.py.
"""

import numpy as np
import pytest

from benchmarks import faults, file_faults, process_faults


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def assert_nothing_lost(row, times):
    assert row.lost == 0, row
    assert row.times == times, row


def test_drivers_killed(tmp_path, rng):
    assert_nothing_lost(process_faults.kill_drivers(tmp_path, 4, rng), 4)


@pytest.mark.slow  # test_whole_job kills the whole job
def test_stages_killed(finished_run, small_config, tmp_path, rng):
    row = faults.kill_stages(small_config, finished_run[0], tmp_path, 1, rng)
    assert_nothing_lost(row, 1)


@pytest.mark.dask
def test_workers_killed(tmp_path, rng):
    assert_nothing_lost(process_faults.kill_workers(tmp_path, 2, rng), 2)


@pytest.mark.dask
def test_a_scheduler_killed(tmp_path, rng):
    row = process_faults.kill_schedulers(tmp_path, 1, rng)
    assert_nothing_lost(row, 1)
    assert row.outcome == "exit 75 1 times"


@pytest.mark.parametrize("options", [(), pytest.param(("--workers", "2"), marks=pytest.mark.dask)])
def test_sigterm_ends_the_shard_and_exits_75(tmp_path, rng, options):
    row = process_faults.terminate(tmp_path, 1, rng, *options)
    assert_nothing_lost(row, 1)
    assert row.outcome == "exit 75 1 times, 0 shards cut"


def test_a_full_disk_is_one_line_and_no_damage(tmp_path):
    assert_nothing_lost(process_faults.fill_disks(tmp_path, 2), 2)


@pytest.mark.parametrize(
    ("damage", "times"),
    [(file_faults.flip_bit, 25), (file_faults.cut_short, 6), (file_faults.empty, 6)],
)
def test_damage_is_found_and_mended(finished_run, small_config, tmp_path, rng, damage, times):
    row = file_faults.damage_files(small_config, finished_run[0], tmp_path, times, rng, damage, 13)
    assert_nothing_lost(row, times)
    assert row.outcome == f"{times} found"
