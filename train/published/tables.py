"""The maps of names as rows and as Markdown: what the command prints and docs/weights.md holds.

`python -m train.published.tables docs/weights.md` writes the tables of a document anew.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from train.published.layouts import BESIDE, LAYOUTS, Layout
from train.published.names import CHANGES

if TYPE_CHECKING:  # its import loads torch
    from train.published.findings import Survey

Row = tuple[str, ...]


def mapped_lines(result: "Survey") -> list[str]:
    """Group the placed tensors by rule: how many, their pattern, and ours below it, unshortened."""
    lines = []
    for rule, count in Counter(place.rule for place in result.placed).items():
        how = "" if rule.change == "copy" else f"  ({CHANGES[rule.change]})"
        lines.append(f"{count:6}  {rule.source}")
        lines += [f"     -> {target}{how}" for target in rule.targets]
    return lines


def ignored_lines(result: "Survey") -> list[str]:
    """Group the entries left out by pattern: how many, their pattern, and why."""
    counts = Counter(entry for _, entry in result.ignored)
    return [f"{count:6}  {entry.source}: {entry.reason}" for entry, count in counts.items()]


def layout_tables(layout: Layout) -> str:
    """Give a layout's map as Markdown: one table per section, one of what is left out."""
    blocks = []
    for section in layout.sections:
        inside = " or ".join(f"`{key}`" for key in section.keys)
        if section.may_be_bare:
            inside = f"{inside}, or the file itself" if inside else "the file itself"
        blocks += [f"In {inside}:", ""]
        rules = ((r.source, _names(r.targets), CHANGES[r.change]) for r in section.rules)
        blocks += [*_table(("published", "ours", "change"), rules), ""]
        ignored = (
            (e.source, e.reason + (" (where there is no place)" if e.only_without_place else ""))
            for e in section.ignored
        )
        blocks += [*_table(("left out", "why"), ignored), ""]
    return "\n".join(blocks)


def beside_table() -> str:
    """Give what a file may hold beside its tensors as Markdown."""
    return "\n".join([*_table(("key", "why it is left out"), BESIDE.items()), ""])


def all_tables() -> dict[str, str]:
    """Every table of docs/weights.md by its name there."""
    return {**{name: layout_tables(layout) for name, layout in LAYOUTS.items()},
            "beside": beside_table()}  # fmt: skip


def write_tables(text: str) -> str:
    """Put the tables of the code between their marks in a document."""
    for name, table in all_tables().items():
        begin, end = f"<!-- table {name} -->\n", "<!-- end -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), flags=re.S)
        found = pattern.search(text)
        if found is None:
            raise ValueError(
                f"the document has no table {name!r}, marked {begin.strip()} ... {end}"
            )
        before, after = text[: found.start()], text[found.end() :]
        text = before + begin + table + end + after
    return text


def _names(targets: Iterable[str]) -> str:
    return "`, `".join(targets)


def _table(columns: Row, rows: Iterable[Row]) -> list[str]:
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    names = columns.index("ours") + 1 if "ours" in columns else 1
    for row in rows:
        cells = [f"`{cell}`" if i < names else cell for i, cell in enumerate(row)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(write_tables(document.read_text(encoding="utf-8")), encoding="utf-8")
