"""Core: how many failed items a stage may have before it stops."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from pipeline.done_records import FailedItem
from pipeline.errors import StoreError
from pipeline.found_values import shown


@dataclass(frozen=True, slots=True)
class Budget:
    """A number of failed items, or a share of all items."""

    value: Decimal | int | float
    """Items, or percent; as it is written in decimals."""
    is_percent: bool

    def __str__(self) -> str:
        return f"{self.value:g}{'%' if self.is_percent else ''}"

    def allowed(self, num_items: int) -> int:
        """Give how many of `num_items` may fail; a share is rounded down, and exactly that."""
        exact = Fraction(str(self.value))
        return int(exact * num_items / 100) if self.is_percent else int(exact)


def parse_budget(text: str) -> Budget:
    """Read `N` or `P%`, e.g. `20` or `0.5%`.

    Raises:
        ValueError: If it is neither.
    """
    # More digits than any run has items would be an argument that cannot be meant.
    found = re.fullmatch(r"(\d{1,18})|(\d{1,3}(?:\.\d{1,18})?)%", text.strip(), re.ASCII)
    if not found or Decimal(found[2] or 0) > 100:
        raise ValueError(f"expected a number of items or 0% to 100%, found {shown(text)}")
    return Budget(Decimal(found[1] or found[2]), is_percent=found[2] is not None)


def refuse_too_many(
    failures: Sequence[FailedItem], num_items: int, budget: Budget | None, step: str
) -> None:
    """Refuse to go on after a step that left out more than a budget allows.

    Args:
        failures: What it left out.
        num_items: Of how many.
        budget: `--max-failures`; None allows any number.
        step: Run and command, for the message.

    Raises:
        StoreError: Names the first of them.
    """
    if budget is None or len(failures) <= budget.allowed(num_items):
        return
    raise StoreError(
        f"{step}: {len(failures)} items failed, more than --max-failures {budget} allows "
        f"({budget.allowed(num_items)}); stopped, and what is done is kept; the first is "
        f"{failures[0].item}: {failures[0].reason}; 'inspect-shards failures' lists all"
    )
