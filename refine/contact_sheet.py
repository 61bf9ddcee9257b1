"""Shell: a picture of what refinement did: image, teacher, candidates, refined label, truth."""

import io

import numpy as np
from PIL import Image

from pipeline.drawing import sheet
from pipeline.errors import StoreError
from pipeline.inspection import label_panels
from pipeline.json_files import atomic_write
from pipeline.paths import RunPaths
from pipeline.places import Place
from pipeline.store_rows import StoreRows
from refine.labels import NO_LABEL, LabelReader

PANELS = ("image", "teacher", "candidates", "label", "truth")
"""What is shown of a label, by the names of `label_panels`."""


def write_contact_sheet(run_dir: Place, number: int, path: Place, num_rows: int = 8) -> Place:
    """Draw labels of one round, spread evenly over the data set, as a PNG.

    Five panels a row: the image with its row, expression and file, the teacher's probability with
    the outline of its mask, the cells that SAM's candidates cut, the refined label with its source,
    and the truth where it is known. `inspect-shards show` draws the same of any row.

    Args:
        run_dir: Run directory; the round must be refined.
        number: The round.
        path: Where the PNG goes.
        num_rows: Expressions to show.

    Raises:
        StoreError: If the round has no label.
    """
    store = RunPaths(run_dir).labels(number)
    usable = np.flatnonzero(LabelReader(store).scalars()["source"] != NO_LABEL)
    if not len(usable):
        raise StoreError(f"{store}: holds no label to show")
    # Offset by half a step: the first and the last image are no better than others.
    steps = (np.arange(num_rows) + 0.5) / num_rows * len(usable)
    rows = sorted({int(usable[int(step)]) for step in steps})
    opened = StoreRows(store)
    drawn = []
    for row in rows:
        panels = label_panels(opened, row)
        drawn.append([panels[name] for name in PANELS if name in panels])
    content = io.BytesIO()
    Image.fromarray(sheet(drawn)).save(content, "PNG")
    atomic_write(path, content.getvalue())
    return path
