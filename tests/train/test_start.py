"""What a training starts from: imported weights, labels of its own run, readable samples."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.commands import Settings
from pipeline.errors import ConfigError, SemiresError, StoreError
from pipeline.failed_items import Failure, failures_of
from pipeline.json_files import read_checked, write_checked
from pipeline.status import run_status
from tests.train.ranks import kill_at, run_ranks, train
from train.config import TrainConfig
from train.lavt import LavtConfig
from train.networks import build_lavt
from train.student import train_student
from train.watch import cut_log, peak_memory


@pytest.fixture
def config(small_config, tmp_path):
    found = Settings(small_config, tmp_path, ()).section("train", TrainConfig)
    short = {name: replace(getattr(found, name), steps=2) for name in ("burn_in", "student")}
    return replace(found, **short)


@pytest.fixture
def run_dir(finished_run, tmp_path):
    """The finished run without what round 1's training and all later steps made."""
    path = tmp_path / "run"
    shutil.copytree(finished_run[0], path)
    shutil.rmtree(path / "round-2")
    shutil.rmtree(path / "round-1" / "student")
    return path


@pytest.fixture
def imported(finished_run, tmp_path):
    """The Swin of another training, as import-weights writes it."""
    weights = load_file(finished_run[0] / "round-2" / "student" / "teacher.safetensors")
    path = tmp_path / "swin.safetensors"
    save_file({k: v for k, v in weights.items() if k.startswith("vision.")}, path)
    return path


def with_init(config, *files):
    return replace(config, network=replace(config.network, init=files))


def teacher(run_dir, number):
    return load_file(run_dir / f"round-{number}" / "student" / "teacher.safetensors")


def test_round_0_starts_from_imported_weights(run_dir, config, imported, tmp_path):
    still = replace(with_init(config, imported), frozen=("vision.",), batch_norm="frozen")
    train_student(still, run_dir, 0, replace="differing")
    given, found = load_file(imported), teacher(run_dir, 0)
    for name, tensor in given.items():
        assert torch.equal(found[name], tensor), name  # frozen, so exactly what was given
    moved = tmp_path / "elsewhere.safetensors"
    imported.rename(moved)
    assert train_student(
        replace(with_init(config, moved), frozen=("vision.",), batch_norm="frozen"), run_dir, 0
    ).already_done
    given[min(given)] += 1
    save_file(given, moved)
    with pytest.raises(StoreError, match=r"inputs\.init_0"):
        train_student(
            replace(with_init(config, moved), frozen=("vision.",), batch_norm="frozen"), run_dir, 0
        )


def test_later_rounds_do_not_read_them(run_dir, config, imported, tmp_path):
    train_student(with_init(config, imported), run_dir, 1)
    assert train_student(config, run_dir, 1).already_done


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "expected a file of import-weights, found none at"),
        (lambda path: path.write_bytes(b"no"), "not a readable safetensors file"),
    ],
)
def test_weights_that_cannot_be_used_are_one_line(run_dir, config, imported, change, message):
    change(imported)
    with pytest.raises(SemiresError, match=message) as caught:
        train_student(with_init(config, imported), run_dir, 0, replace="differing")
    assert "\n" not in str(caught.value)
    assert str(imported) in str(caught.value)


def test_frozen_parameters_stay_and_the_rest_moves(run_dir, config, finished_run):
    train_student(replace(config, frozen=("text.embeddings.",)), run_dir, 1)
    before, after = teacher(finished_run[0], 0), teacher(run_dir, 1)
    for name, tensor in after.items():
        if name.startswith("text.embeddings."):
            assert torch.equal(tensor, before[name]), name
    assert not torch.equal(after["decoder.head.weight"], before["decoder.head.weight"])


def edit_plan(path, change):
    document = read_checked(path)
    change(document)
    write_checked(path, document)


@pytest.mark.parametrize(
    ("store", "change", "message"),
    [
        ("labels", lambda d: d["plan"]["inputs"].update(manifest="0" * 64), "another data set"),
        ("labels", lambda d: d["plan"].update(stage="refine-2"), "another round"),
        ("labels", lambda d: d["plan"]["inputs"].update(teacher="0" * 64), "another teacher"),
        ("teacher", lambda d: d["plan"]["inputs"].update(student="0" * 64), "student before it"),
    ],
)
def test_labels_of_something_else_are_refused(run_dir, config, store, change, message):
    edit_plan(run_dir / "round-1" / f"{store}.stage" / "plan.json", change)
    with pytest.raises(StoreError, match=message):
        train_student(config, run_dir, 1)
    assert not (run_dir / "round-1" / "student").exists()


def damage_masks(run_dir):
    """Spoil the first mask shard; the others stay."""
    files = sorted(p for p in (run_dir / "round-1/labels.zarr/mask/c").rglob("*") if p.is_file())
    files[0].write_bytes(b"damaged" + files[0].read_bytes()[7:])


def test_a_damaged_label_ends_the_training_or_is_skipped_and_counted(run_dir, config):
    damage_masks(run_dir)
    longer = replace(config, student=replace(config.student, steps=8))
    with pytest.raises(StoreError, match=r"labels.zarr: row \d+ cannot be read"):
        train_student(longer, run_dir, 1)
    summary = train_student(replace(longer, damaged="skip"), run_dir, 1, replace="always")
    assert 0 < len(summary.failures) < 32
    assert all("cannot be read" in failure.reason for failure in summary.failures)
    assert all(failure.item.endswith("'") for failure in summary.failures)  # the sentence
    again = train_student(replace(longer, damaged="skip"), run_dir, 1)
    assert (again.already_done, again.failures) == (True, summary.failures)


def test_what_was_skipped_is_listed_and_counted_of_the_run(run_dir, config):
    damage_masks(run_dir)
    longer = replace(config, damaged="skip", student=replace(config.student, steps=8))
    summary = train_student(longer, run_dir, 1)
    verb = "train-student --round 1"
    assert summary.failures
    assert failures_of(run_dir) == [
        Failure(failure.item, verb, failure.reason, 1) for failure in summary.failures
    ]
    (status,) = [status for status in run_status(run_dir) if status.verb == verb]
    assert (status.state, status.failed_items) == ("done", len(summary.failures))


@pytest.mark.parametrize("value", [7, {"item": "a"}, ["a"], [{"item": "a"}], [{"item": 1}]])
def test_a_list_of_what_was_skipped_that_cannot_be_read_is_damage(run_dir, config, value):
    train_student(config, run_dir, 1)
    path = run_dir / "round-1" / "student" / "student.json"
    write_checked(path, read_checked(path) | {"skipped": value})
    (status,) = [s for s in run_status(run_dir) if s.verb == "train-student --round 1"]
    assert status.state == "damaged"
    with pytest.raises(StoreError, match=r"student.json: damaged \(expected skipped as a list"):
        failures_of(run_dir)


def test_skipping_changes_nothing_where_all_can_be_read(run_dir, config):
    train_student(config, run_dir, 1)
    whole = teacher(run_dir, 1)
    train_student(replace(config, damaged="skip"), run_dir, 1, replace="always")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in teacher(run_dir, 1).items())


def test_a_loss_that_is_not_finite_names_step_and_expressions(run_dir, config):
    with pytest.raises(SemiresError, match=r"step 0; .* expressions: row \d+ \(.*: '.*'\), row"):
        train_student(replace(config, labelled_weight=1e300), run_dir, 1)


@pytest.mark.ddp
def test_sigkill_costs_at_most_the_interval(run_dir, small_config, finished_run, tmp_path):
    import functools

    killed = run_ranks(
        1, train, (small_config, run_dir, 1, (), functools.partial(kill_at, 5, 0)), tmp_path
    )
    assert killed[0].code == 9
    resumed = run_ranks(1, train, (small_config, run_dir, 1), tmp_path)
    assert resumed[0].code == 0
    for name in ("teacher.safetensors", "log.csv", "student.json"):
        mine = (run_dir / "round-1" / "student" / name).read_bytes()
        assert mine == (finished_run[0] / "round-1" / "student" / name).read_bytes()


def test_tensorboard_that_is_missing_is_one_line(run_dir, config, monkeypatch):
    from train import watch

    monkeypatch.setattr(watch, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[watch\]'"):
        train_student(replace(config, tensorboard=True), run_dir, 1)


def test_tensorboard_is_written_where_it_is_there(run_dir, config):
    pytest.importorskip("tensorboard", exc_type=ImportError)
    train_student(replace(config, tensorboard=True), run_dir, 1)
    assert list((run_dir / "round-1/student/tensorboard").glob("events*"))


def test_cutting_a_log_drops_later_and_torn_lines(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n0,1\n1,2\n2,3\n3,")
    cut_log(path, 2)
    assert path.read_text() == "step,loss\n0,1\n1,2\n"
    cut_log(path, 0)
    assert not path.exists()
    cut_log(path, 5)


def test_peak_memory_is_that_of_a_process_with_torch():
    own, gpu = peak_memory("cpu")
    assert 50 * 2**20 < own < 2**40
    assert gpu == 0


def test_published_fusion_init_is_uniform_and_the_toy_keeps_its_own():
    torch.manual_seed(0)
    options = {"image_size": 64, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1),
               "fusion_heads": (1, 1), "text_dim": 64, "text_layers": 1, "text_heads": 1,
               "vocab_size": 20}  # fmt: skip
    for published in (True, False):
        network = build_lavt("toy", {**options, "published_fusion_init": published})
        layer = network.fusions[0].attention.key
        bound = layer.in_features**-0.5
        assert (layer.weight.abs().max() <= bound) == published
        assert bool(layer.bias.any()) == published
    assert LavtConfig().published_fusion_init


def test_a_copied_network_drops_its_own_mlp_branches():
    """The teacher is a copy in eval mode: stochastic depth must not reach it from the student."""
    import copy

    torch.manual_seed(0)
    network = build_lavt("toy", {"vocab_size": 20, "drop_path_rate": 0.9}).train()
    names = list(network.state_dict())
    assert names == list(build_lavt("toy", {"vocab_size": 20}).state_dict())
    teacher = copy.deepcopy(network).eval()
    inputs = (torch.randn(1, 3, 128, 128), torch.ones(1, 4).long(), torch.ones(1, 4).long())
    with torch.no_grad():
        assert torch.equal(teacher(*inputs), teacher(*inputs))
        assert not torch.equal(network(*inputs), network(*inputs))
