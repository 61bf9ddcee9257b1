"""Shell: curves and histograms as PNG."""

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.json_files import atomic_write
from pipeline.places import Place
from refine.quality import BINS


def write_calibration_plot(document: dict[str, Any], path: Place) -> Place:
    """Draw a calibration: label mIoU over each strategy's threshold, and reach against precision.

    Left, the best mIoU at each value of the strategy's first threshold, whatever the rest; right,
    one dot per setting: the share of labels refined and the share of changes that help.
    """
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    own = document["teacher"]["mean_iou"]
    left.axhline(100 * own, color="black", linestyle=":", label="teacher's own masks")
    names = sorted({row["strategy"] for row in document["rows"]})
    for number, strategy in enumerate(names):
        rows = [row for row in document["rows"] if row["strategy"] == strategy]
        colour = f"C{number}"
        best: dict[float, float] = {}
        for row in rows:
            threshold = _threshold(row["params"])
            if threshold is not None:
                best[threshold] = max(best.get(threshold, 0.0), 100 * row["mean_iou"])
        if best:
            places = sorted(best)
            left.plot(places, [best[x] for x in places], ".-", color=colour, label=strategy)
        dots = [row for row in rows if row["correction_precision"] is not None]
        right.plot(
            [100 * row["match_rate"] for row in dots],
            [100 * row["correction_precision"] for row in dots],
            ".", color=colour, markersize=3,
        )  # fmt: skip
    _label(left, "threshold", "label mIoU, %", f"{document['expressions']} held-out expressions")
    _label(right, "labels refined, %", "changes that help, %", f"{document['settings']} settings")
    left.legend(fontsize="small")
    right.axhline(50, color="black", linewidth=0.5)
    return _save(figure, path)


def write_quality_plot(quality: dict[str, Any], path: Place) -> Place:
    """Draw a round's histograms: IoU with the truth where it is known, expected IoU always."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = [(column + 0.5) / BINS for column in range(BINS)]
    histograms = quality["histograms"]
    left.bar(places, histograms["expected"], width=0.9 / BINS, color="C0")
    _label(left, "expected IoU of the refined label", "labels", f"{quality['labels']} labels")
    if quality["truths"]:
        half = 0.4 / BINS
        for shift, name in ((-half / 2, "raw"), (half / 2, "refined")):
            shifted = [place + shift for place in places]
            right.bar(shifted, histograms[name], width=half, label=name)
        right.legend()
        title = f"helped {quality['helped']}, hurt {quality['hurt']}"
        _label(right, "IoU with the truth", "labels", title)
    else:
        right.set_axis_off()
        right.text(0.5, 0.5, "truth unknown", ha="center")
    return _save(figure, path)


def _threshold(params: dict[str, Any]) -> float | None:
    values = [v for k, v in params.items() if k.startswith("min_") and k != "min_step"]
    return float(values[0]) if values and values[0] is not None else None


def _label(axes: Axes, x: str, y: str, title: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title)


def _save(figure: Figure, path: Place) -> Place:
    FigureCanvasAgg(figure)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    atomic_write(path, content.getvalue())
    return path
