"""The recipes: every config parses, and recipes/slurm.sh submits the job that its config describes.

`sbatch` and `scontrol` stand in for SLURM: a job runs when it is submitted, by sh, under SLURM's
rules of dependencies. In the short tests the verbs only say how they were called; the long one runs
the real verbs.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from conftest import file_hashes

from pipeline.cli import prepare_data, sam_candidates
from pipeline.commands import Settings
from refine.cli import refine_labels
from train.cli import job_config, predict_teacher, run_rounds, train_student

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
VERBS = {
    "prepare-data": prepare_data,
    "sam-candidates": sam_candidates,
    "predict-teacher": predict_teacher,
    "refine-labels": refine_labels,
    "train-student": train_student,
    "run-rounds": run_rounds,
}

SBATCH = """\
#!{python}
import json, os, pathlib, subprocess, sys

folder = pathlib.Path({folder!r})
options = dict(word[2:].split("=", 1) for word in sys.argv[1:-2] if "=" in word)
assert sys.argv[-2] == "--wrap", sys.argv
log = folder / "jobs.jsonl"
jobs = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
number = len(jobs) + 1
codes = {{job["number"]: job["codes"] for job in jobs}}
met = True
for rule in options.get("dependency", "").split(","):
    kind, _, wanted = rule.partition(":")
    before = codes[int(wanted)] if wanted else []
    # A job that never ran has no codes; --kill-on-invalid-dep took it out, which ends it.
    met &= kind in ("", "afterany") or (bool(before) and not any(before))
tasks = [None]
if "array" in options:
    first, last = options["array"].split("-")
    tasks = range(int(first), int(last) + 1)
found = []
for task in tasks if met else []:
    names = {{"SLURM_JOB_ID": str(number)}}
    if task is not None:
        names |= {{"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(task)}}
    again = True
    while again:
        (folder / "requeued").unlink(missing_ok=True)
        with (folder / "out").open("a") as out:
            code = subprocess.run(["sh", "-c", sys.argv[-1]], env=os.environ | names,
                                  stdout=out, stderr=out).returncode
        again = (folder / "requeued").exists()
    found.append(code)
job = {{"number": number, "options": options, "codes": found}}
with log.open("a") as file:
    file.write(json.dumps(job) + "\\n")
print(number)
"""
SCONTROL = """\
#!/bin/sh
echo "$@" >> {folder}/requeues
touch {folder}/requeued
"""
# Says how it was called, and exits as `codes/VERB` says: a line per call, 0 when they are used up.
VERB = """\
#!/bin/sh
echo "$(basename "$0") $@" >> {folder}/calls
codes={folder}/codes/$(basename "$0")
code=$(sed -n 1p "$codes" 2> /dev/null)
[ -z "$code" ] || sed -i 1d "$codes"
exit ${{code:-0}}
"""


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_is_a_whole_config(path, tmp_path):
    """Every section parses; what a config promises of weights and data is on the user's machine."""
    job = job_config(Settings(path, tmp_path, ()))
    assert job.train.burn_in.steps > 0
    assert job.data.labelled.ratio is not None


def test_own_photos_lose_no_masks():
    """A ratio below 1 hides the masks of the other images, which only an experiment wants."""
    for name in ("photos.yaml", "photos_gpu.yaml"):
        job = job_config(Settings(ROOT / "recipes" / name, Path("run"), ()))
        assert job.data.reader == "jsonl"
        assert job.data.labelled.ratio == 1.0


def executable(path: Path, text: str) -> None:
    """Write a script that can be called."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class Cluster:
    """A folder of stand-ins, and what was asked of them."""

    def __init__(self, folder: Path, *, verbs: bool) -> None:
        self.folder = folder
        executable(
            folder / "bin" / "sbatch", SBATCH.format(python=sys.executable, folder=str(folder))
        )
        executable(folder / "bin" / "scontrol", SCONTROL.format(folder=folder))
        executable(folder / "bin" / "python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        for name in VERBS if verbs else ():
            executable(folder / "bin" / name, VERB.format(folder=folder))
        (folder / "codes").mkdir()

    def submit(self, config: Path, **given: str) -> subprocess.CompletedProcess[str]:
        """Run recipes/slurm.sh; forget what was asked before."""
        for name in ("calls", "jobs.jsonl", "requeues"):
            (self.folder / name).unlink(missing_ok=True)
        return subprocess.run(
            ["bash", ROOT / "recipes" / "slurm.sh"],
            env=os.environ
            | {
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "RUN": "run",
                "CONFIG": str(config),
                "PARTS": "2",
            }
            | given,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )

    def fail(self, verb: str, *codes: int) -> None:
        """Let the next calls of a verb exit so."""
        (self.folder / "codes" / verb).write_text("".join(f"{code}\n" for code in codes))

    @property
    def calls(self) -> list[str]:
        """Give the verbs that ran, with what is not the same for all of them."""
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def jobs(self) -> list[dict[str, object]]:
        """Give the jobs in the order of their submission."""
        return [json.loads(line) for line in (self.folder / "jobs.jsonl").read_text().splitlines()]


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path, verbs=True)


def config_of(folder: Path, **sections: object) -> Path:
    """Write a config of these sections."""
    path = folder / "job.yaml"
    path.write_text(json.dumps({"version": 1, "data": {"reader": "scenes"}} | sections))
    return path


def test_slurm_does_what_the_config_says(cluster):
    """Rounds, folds and their order are the config's; every call is one that its verb takes."""
    config = config_of(
        cluster.folder, rounds={"rounds": 1, "calibrate": True}, calibrate={"folds": 2}
    )
    done = cluster.submit(config)
    assert done.returncode == 0, done.stderr
    options = f" --config {config} --run-dir run"
    calls = [call.replace(options, "") for call in cluster.calls]
    assert calls == [
        "run-rounds --dry-run",
        "prepare-data",
        "sam-candidates --shard-index 0 --num-shards 2",
        "sam-candidates --shard-index 1 --num-shards 2",
        "sam-candidates",
        "train-student --round 0",
        "train-student --fold 1/2",
        "predict-teacher --fold 1/2",
        "train-student --fold 2/2",
        "predict-teacher --fold 2/2",
        "predict-teacher --round 1 --shard-index 0 --num-shards 2",
        "predict-teacher --round 1 --shard-index 1 --num-shards 2",
        "predict-teacher --round 1",
        "refine-labels calibrate --round 1 --apply",
        "refine-labels --round 1 --workers 8",
        "train-student --round 1",
        "run-rounds",
    ]
    assert all(options in call for call in cluster.calls)
    for call in cluster.calls:
        name, *words = shlex.split(call)
        command = VERBS[name]
        if words[0] == "calibrate":
            command = command.commands[words.pop(0)]
        with command.make_context(name, words, parent=click.Context(refine_labels)):
            pass  # an option that is none ends in a usage error
    assert done.stdout.splitlines()[-1] == f"the last job is {len(cluster.jobs)}"
    on_gpus = [job["options"]["job-name"] for job in cluster.jobs if job["options"].get("gpus")]
    assert set(on_gpus) == {"sam-candidates", "train-student", "predict-teacher", "run-rounds"}


def test_slurm_without_calibration_does_the_default_rounds(cluster):
    assert cluster.submit(config_of(cluster.folder), GPU="").returncode == 0
    rounds = [call.split(" --config")[0] for call in cluster.calls if "refine-labels" in call]
    assert rounds == [f"refine-labels --round {number} --workers 8" for number in (1, 2)]
    assert not any(job["options"].get("gpus") for job in cluster.jobs)


def test_slurm_refuses_what_only_a_running_job_decides(cluster):
    config = config_of(cluster.folder, rounds={"rounds": 3, "stop": {}})
    done = cluster.submit(config)
    assert done.returncode == 1
    assert "rounds.stop decides after every round" in done.stderr
    assert not (cluster.folder / "jobs.jsonl").exists()


def test_slurm_submits_nothing_that_a_dry_run_refuses(cluster):
    cluster.fail("run-rounds", 1)
    assert cluster.submit(config_of(cluster.folder)).returncode == 1
    assert not (cluster.folder / "jobs.jsonl").exists()


def test_failed_items_wait_for_a_decision(cluster):
    """Exit code 3 is there again whenever the verb is: only GO_ON goes on."""
    config = config_of(cluster.folder, rounds={"rounds": 1})
    cluster.fail("prepare-data", 3)
    assert cluster.submit(config).returncode == 0
    assert [call.split()[0] for call in cluster.calls] == ["run-rounds", "prepare-data"]
    assert [job["codes"] for job in cluster.jobs] == [[3], *[[] for _ in cluster.jobs[1:]]]
    assert all(job["options"]["kill-on-invalid-dep"] == "yes" for job in cluster.jobs)

    cluster.fail("prepare-data", 3)
    cluster.fail("sam-candidates", 3, 0, 3)
    assert cluster.submit(config, GO_ON="1").returncode == 0
    assert cluster.calls[-1].split()[0] == "run-rounds"
    assert [code for job in cluster.jobs for code in job["codes"]] == [0] * (len(cluster.calls) - 1)


def test_an_error_ends_the_job_whatever_was_decided(cluster):
    cluster.fail("train-student", 1)
    assert cluster.submit(config_of(cluster.folder), GO_ON="1").returncode == 0
    assert cluster.calls[-1].split()[:3] == ["train-student", "--round", "0"]


def test_a_part_that_fails_is_made_up_for_by_the_job_behind_the_array(cluster):
    cluster.fail("sam-candidates", 0, 1, 0)
    assert cluster.submit(config_of(cluster.folder)).returncode == 0
    assert [job["codes"] for job in cluster.jobs[:3]] == [[0], [0, 1], [0]]
    assert cluster.calls[-1].split()[0] == "run-rounds"


def test_interrupted_jobs_are_queued_again(cluster):
    """Exit code 75 of one part of an array, and of a job that is none."""
    cluster.fail("sam-candidates", 0, 75, 0)
    cluster.fail("train-student", 75, 75)
    assert cluster.submit(config_of(cluster.folder, rounds={"rounds": 1})).returncode == 0
    assert (cluster.folder / "requeues").read_text().splitlines() == [
        "requeue 2_1", "requeue 4", "requeue 4",
    ]  # fmt: skip
    assert all(set(job["codes"]) == {0} for job in cluster.jobs)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_slurm_comes_to_what_run_rounds_does(tmp_path, small_config, finished_run):
    """By the real verbs, as jobs in place of one process: the same stores and weights."""
    cluster = Cluster(tmp_path, verbs=False)
    for name, command in VERBS.items():
        function = name.replace("-", "_")
        program = f"from {command.callback.__module__} import {function} as verb; verb()"
        executable(
            tmp_path / "bin" / name, f"#!/bin/sh\nexec {sys.executable} -c '{program}' \"$@\"\n"
        )
    done = cluster.submit(small_config, GPU="")
    assert done.returncode == 0, done.stderr
    assert [job["codes"] for job in cluster.jobs if set(job["codes"]) != {0}] == []
    run_dir, _ = finished_run
    assert file_hashes(tmp_path / "run") == file_hashes(run_dir)
    assert (tmp_path / "run" / "round-2" / "sheet.png").is_file()
    assert (tmp_path / "run" / "summary.json").is_file()
