"""Core: how many failed items a stage may have before it stops."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Budget:
    """A number of failed items, or a share of all items."""

    value: float
    """Items, or percent."""
    is_percent: bool

    def __str__(self) -> str:
        return f"{self.value:g}{'%' if self.is_percent else ''}"

    def allowed(self, num_items: int) -> int:
        """Give how many of `num_items` may fail; a share is rounded down."""
        return int(self.value * num_items / 100) if self.is_percent else int(self.value)


def parse_budget(text: str) -> Budget:
    """Read `N` or `P%`, e.g. `20` or `0.5%`.

    Raises:
        ValueError: If it is neither.
    """
    found = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)%", text.strip())
    if not found or float(found[2] or 0) > 100:
        raise ValueError(f"expected a number of items or 0% to 100%, found {text!r}")
    return Budget(float(found[1] or found[2]), is_percent=found[2] is not None)
