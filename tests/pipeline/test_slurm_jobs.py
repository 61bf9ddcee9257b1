"""Jobs of a cluster, by the real dask-jobqueue; `sbatch` and `scancel` stand in for SLURM."""

import os
import signal
import sys
import threading
import time
from contextvars import Context
from dataclasses import dataclass
from pathlib import Path

import dask
import pytest

from pipeline.dask_clusters import slurm_client
from pipeline.engines import Engine
from pipeline.records import done_path
from pipeline.runner import run_stage
from tests.pipeline.null_stages import Slow, digest, null_plan
from tests.pipeline.test_dask_clusters import is_loopback, listening, needs_proc

pytestmark = pytest.mark.dask

SBATCH = """\
#!{python}
import os, subprocess, sys
script = sys.argv[-1]
text = open(script).read() if os.path.exists(script) else sys.stdin.read()
open({folder!r} + "/script", "w").write(text)
job = subprocess.Popen(["bash", "-c", text], start_new_session=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
open({folder!r} + "/jobs", "a").write(str(job.pid) + "\\n")
print("Submitted batch job", job.pid)
"""
SCANCEL = "#!/bin/sh\nfor job; do kill -- -$job; done 2>/dev/null; exit 0\n"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A SLURM whose jobs are process groups of this machine; the folder that tells of them."""
    pytest.importorskip("dask_jobqueue")
    folder = tmp_path / "slurm"
    folder.mkdir()
    (folder / "jobs").touch()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        path = folder / name
        path.write_text(text.format(python=sys.executable, folder=str(folder)))
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    settings = {"jobqueue.slurm.interface": "lo", "jobqueue.slurm.walltime": "00:10:00"}
    with dask.config.set(settings):
        yield folder


def submitted(slurm):
    """List the process groups of the jobs that were ever submitted."""
    return [int(line) for line in (slurm / "jobs").read_text().splitlines()]


def run_by_jobs(plan, work, jobs):
    """Run a stage in a context of its own, so that the jobs end with it."""
    engine = Engine(name="slurm", workers=jobs)
    return Context().run(run_stage, plan, work, engine=engine, made_by="squares")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    plan = null_plan(tmp_path_factory.mktemp("whole"))
    run_stage(plan, Slow(), made_by="squares")
    return digest(plan.store)


def test_slurm_jobs_do_the_stage(slurm, tmp_path, undisturbed):
    plan = null_plan(tmp_path / "run")
    assert run_by_jobs(plan, Slow(), jobs=2).complete
    assert digest(plan.store) == undisturbed
    assert len(submitted(slurm)) == 2
    script = (slurm / "script").read_text()
    assert "--lifetime 540s --lifetime-stagger 54s" in script
    assert "#SBATCH -t 00:10:00" in script


@dataclass(frozen=True)
class Awaiting(Slow):
    """Do the first shard, and the others once a file is there."""

    file: Path = Path()

    def __call__(self, rows):
        while rows.start and not self.file.exists():
            time.sleep(0.01)
        return super().__call__(rows)


@pytest.mark.timeout(180)  # without another job it would wait for one
def test_a_job_that_is_preempted_is_submitted_again(slurm, tmp_path, undisturbed):
    plan, killed = null_plan(tmp_path / "run"), tmp_path / "killed"

    def preempt():
        while not done_path(plan.store, 0).exists():
            time.sleep(0.01)
        (job,) = submitted(slurm)
        os.killpg(job, signal.SIGKILL)
        killed.touch()

    thread = threading.Thread(target=preempt, daemon=True)
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "0.5s"}):
        thread.start()
        summary = run_by_jobs(plan, Awaiting(file=killed), jobs=1)
    assert summary.complete
    assert len(submitted(slurm)) == 2
    assert digest(plan.store) == undisturbed


def processes_of(group):
    """List the processes of a process group."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text()
            except OSError:
                continue
            if int(stat.rsplit(")", 1)[1].split()[2]) == group:
                found.append(int(folder.name))
    return found


@needs_proc
def test_dashboards_of_scheduler_and_jobs_are_not_for_the_network(slurm):
    """All else is made to listen on loopback here, so that only a dashboard could be beyond it."""
    with slurm_client(1, None) as client:
        client.wait_for_workers(1, timeout=120)
        (job,) = submitted(slurm)
        of_driver, of_job = listening([os.getpid()]), listening(processes_of(job))
    assert len(of_driver) >= 2  # the scheduler, and its dashboard or what stands there without
    assert len(of_job) >= 1
    assert [address for address in of_driver + of_job if not is_loopback(address)] == []
