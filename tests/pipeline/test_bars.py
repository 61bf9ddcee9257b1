"""Bars are drawn often for an eye, and seldom into a log, which keeps every drawing."""

import io

import pytest
from tqdm import tqdm

from pipeline.bars import A_LOG, AN_EYE, bar_options


class Screen(io.StringIO):
    """A terminal, as far as a bar looks at one."""

    def isatty(self):
        """Say that it is one."""
        return True


def drawings(monkeypatch, stream, seconds):
    """Give what a bar writes of an item each second."""
    clock = iter(range(10_000))
    monkeypatch.setattr("sys.stderr", stream)
    bar = tqdm(total=seconds, **bar_options())
    monkeypatch.setattr(bar, "_time", lambda: next(clock))
    bar.last_print_t = bar.start_t = 0
    for _ in range(seconds):
        bar.update(1)
    bar.close()
    return stream.getvalue()


def test_a_log_gets_a_drawing_each_half_minute_and_the_last_state(monkeypatch):
    text = drawings(monkeypatch, io.StringIO(), 120)
    assert 3 <= text.count("\r") <= 8
    assert "120/120" in text


def test_an_eye_gets_more_drawings_than_a_log(monkeypatch):
    log = drawings(monkeypatch, io.StringIO(), 120)
    assert drawings(monkeypatch, Screen(), 120).count("\r") > 5 * log.count("\r")


@pytest.mark.parametrize(("stream", "seconds"), [(Screen, AN_EYE), (io.StringIO, A_LOG)])
def test_the_monitor_of_tqdm_draws_no_more_often(monkeypatch, stream, seconds):
    monkeypatch.setattr("sys.stderr", stream())
    options = bar_options()
    assert options["mininterval"] == seconds
    assert options["maxinterval"] >= seconds
