"""How many items may fail: exactly what was written."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.budget import parse_budget


@pytest.mark.parametrize(
    ("text", "items", "allowed"),
    [
        ("0", 10, 0),
        ("20", 10, 20),
        ("0.57%", 10_000, 57),  # 56.99… in binary fractions
        ("0.5%", 199, 0),
        ("0.5%", 200, 1),
        ("100%", 7, 7),
        ("999999999999999999", 7, 999999999999999999),
    ],
)
def test_a_budget_is_what_is_written(text, items, allowed):
    assert parse_budget(text).allowed(items) == allowed


@given(hundredths=st.integers(0, 10_000), items=st.integers(0, 10**9))
def test_a_share_is_rounded_down_and_no_further(hundredths, items):
    text = f"{hundredths // 100}.{hundredths % 100:02}%"
    assert parse_budget(text).allowed(items) == Fraction(hundredths, 10_000) * items // 1


@pytest.mark.parametrize("text", ["20", "0.5%", "0.57%", "100%"])
def test_a_budget_is_written_as_it_was_read(text):
    assert str(parse_budget(text)) == text


@pytest.mark.parametrize(
    "text", ["", "-1", "1.5", "101%", "100.01%", "nan%", "1e3", "9" * 400, "9" * 5000 + "%", "٣"]
)
def test_what_is_no_budget_is_named(text):
    with pytest.raises(ValueError, match="expected a number of items or 0% to 100%") as refused:
        parse_budget(text)
    assert len(str(refused.value)) < 200
