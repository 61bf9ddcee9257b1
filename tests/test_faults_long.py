"""The long version of the fault tests: `pytest -m slow tests/test_faults_long.py`."""

import pytest

from benchmarks import faults


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_nothing_is_ever_lost(finished_run, small_config, tmp_path):
    rows = list(faults.campaign(small_config, finished_run[0], tmp_path))
    assert [row for row in rows if row.lost] == []
    assert sum(row.times for row in rows if row.what.startswith("SIGKILL")) >= 30
    assert sum(row.times for row in rows if "bit" in row.what) >= 200
