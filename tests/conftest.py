"""Small jobs that really run: eight generated scenes, the shipped SAM, a very small network."""

import hashlib
import random
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# `make test` tries the same examples each time, so that what is refused is what was changed;
# `make test-all` looks for others. How fast a machine is, is no property of the code.
_ANY_MACHINE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", _ANY_MACHINE, derandomize=True)
settings.register_profile("search", _ANY_MACHINE, print_blob=True)
settings.load_profile("same")

# A shell has what it starts in the background ignore ctrl-C, and so would the processes of tests.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _seed_global_generators():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    if (torch := sys.modules.get("torch")) is not None:  # too slow to import for those without
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _same_draws():
    """Let what a test draws from global generators not depend on the tests before it."""
    _seed_global_generators()


@pytest.fixture(autouse=True, scope="module")
def _same_draws_of_a_module():
    """Let what a module's fixtures draw not depend on the modules before it."""
    _seed_global_generators()


SMALL_JOB = """\
version: 1
data:
  reader: scenes
  scenes: {train: 8, val: 3}
  labelled: {ratio: 0.25}
candidates:
  model: vit_tiny_demo
  canvas: 256
  shard_size: 3
  options: {points_per_side: 6}
teacher: {shard_size: 16, batch_size: 8}
refine:
  shard_size: 24
  chain: [{strategy: cpi-u}, {strategy: pwa}]
train:
  network:
    size: toy
    options: {image_size: 64, embed_dim: 8, depths: [1, 1], num_heads: [1, 1], text_dim: 16,
              text_layers: 1, text_heads: 1, fusion_heads: [1, 1], decoder_channels: 8}
  burn_in: {steps: 12, learning_rate: 0.003, labelled_batch: 4}
  student: {steps: 8, learning_rate: 0.002, labelled_batch: 2, unlabelled_batch: 4}
  ema_decay: 0.9
  num_threads: 1
  save_every: 3
evaluate: {splits: [val], final_splits: [val]}
rounds: {rounds: 2, sheet_rows: 3}
"""


@pytest.fixture(scope="session")
def small_config(tmp_path_factory):
    """The config of a job of some seconds."""
    path = tmp_path_factory.mktemp("config") / "stages.yaml"
    path.write_text(SMALL_JOB)
    return path


def file_hashes(run_dir: Path) -> dict[str, str]:
    """Hash everything of a run that must not depend on how it was run: stores and weights."""
    chosen = [
        *run_dir.glob("**/*.zarr/**/*"),
        *run_dir.glob("**/student/*"),
        *run_dir.glob("manifest/*"),
    ]
    return {
        path.relative_to(run_dir).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(chosen)
        if path.is_file()
    }


@pytest.fixture(scope="session")
def finished_run(small_config, tmp_path_factory):
    """A run of the small job, done once, in this process; tests must not change it."""
    from pipeline.commands import Settings
    from train.cli import job_config
    from train.rounds import run_rounds

    run_dir = tmp_path_factory.mktemp("run")
    summary = run_rounds(
        job_config(Settings(small_config, run_dir, ())), run_dir, say=lambda _: None
    )
    return run_dir, summary
