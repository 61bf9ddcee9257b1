import pytest
import torch
from torch import nn

from pipeline.errors import ConfigError
from train.ema import ema_decay, make_teacher, update_teacher
from train.networks import build_lavt


class Net(nn.Module):
    def __init__(self, value, width=3):
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), float(value)))
        self.norm = nn.BatchNorm1d(width)
        self.register_buffer("table", torch.arange(2**24, 2**24 + 8))


def test_update_by_hand():
    teacher, student = make_teacher(Net(1)), Net(3)
    student.norm.running_mean.fill_(5)
    update_teacher(teacher, student, 0.75)
    assert torch.equal(teacher.weight, torch.full((3,), 1.5))
    assert torch.equal(teacher.norm.running_mean, torch.full((3,), 5.0))


def test_integer_buffers_stay_exact_and_integer():
    teacher, student = make_teacher(Net(0)), Net(1)
    student.norm.num_batches_tracked.fill_(7)
    for step in range(20):
        update_teacher(teacher, student, ema_decay(step))
    assert teacher.table.dtype == torch.int64
    assert torch.equal(teacher.table, torch.arange(2**24, 2**24 + 8))
    assert teacher.norm.num_batches_tracked.item() == 7


def test_window_indices_of_swin_survive():
    student = build_lavt("toy", {"vocab_size": 10})
    teacher = make_teacher(student)
    before = {k: b.clone() for k, b in teacher.named_buffers() if "position_index" in k}
    for _ in range(3):
        update_teacher(teacher, student, 0.996)
    after = dict(teacher.named_buffers())
    assert before
    assert all(torch.equal(after[name], table) for name, table in before.items())


def test_teacher_is_a_copy_without_gradients_in_eval_mode():
    student = Net(1)
    teacher = make_teacher(student)
    assert not teacher.training
    assert student.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    update_teacher(teacher, Net(2), 0.0)
    assert torch.equal(student.weight, torch.ones(3))


def test_repeated_updates_converge_geometrically():
    teacher, student = make_teacher(Net(0)), Net(1)
    for _ in range(10):
        update_teacher(teacher, student, 0.5)
    assert torch.allclose(teacher.weight, torch.full((3,), 1 - 0.5**10))


def test_decay_warms_up_and_then_stays():
    assert ema_decay(0, 0.996) == 0.996
    assert ema_decay(0, 0.996, warm_up=True) == 0.1
    assert ema_decay(90, 0.996, warm_up=True) == 0.91
    assert ema_decay(100_000, 0.996, warm_up=True) == 0.996


def test_different_networks_and_bad_decays_are_refused():
    teacher = make_teacher(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="bias"):
        update_teacher(teacher, nn.Linear(2, 2, bias=False), 0.9)
    with pytest.raises(ConfigError, match=r"1\.0"):
        ema_decay(0, 1.0)
