"""Shell: curves and histograms as PNG."""

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.json_files import atomic_write
from pipeline.places import Place
from refine.calibrate_config import HOLLOW
from refine.quality import BINS

SQUASHING = 4
"""A bar so many times as high as the next leaves it too flat to be read."""
UPRIGHT = 10_000
"""Counts from here on are too wide for a bar and stand upright."""


def write_calibration_plot(document: dict[str, Any], path: Place) -> Place:
    """Draw a calibration: label mIoU over each strategy's threshold, and reach against precision.

    Left, the best mIoU at each value of the strategy's first threshold, whatever the rest, beside
    the teacher's own masks and what marking the whole image gives; right, one dot per setting: the
    share of labels refined and the share of changes that help. A ring marks the best setting.
    """
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _baselines(left, document)
    rows_of: dict[str, list[dict[str, Any]]] = {}
    for row in document["rows"]:
        rows_of.setdefault(row["strategy"], []).append(row)
    for number, (strategy, rows) in enumerate(sorted(rows_of.items())):
        best: dict[float, float] = {}
        for row in rows:
            threshold = _threshold(row["params"])
            if threshold is not None:
                best[threshold] = max(best.get(threshold, 0.0), 100 * row["mean_iou"])
        style = {"color": f"C{number}"}
        if best:
            left.plot(sorted(best), [best[x] for x in sorted(best)], ".-", label=strategy, **style)
        _dots(right, rows, ".", markersize=3, **style)
    chosen = document["rows"][:1]
    ring = {"color": "black", "markersize": 9, "fillstyle": "none"}
    _dots(right, chosen, "o", label="best setting", **ring)
    threshold = _threshold(chosen[0]["params"])
    if threshold is not None:
        left.plot([threshold], [100 * chosen[0]["mean_iou"]], "o", **ring)
    _label(left, "threshold", "label mIoU, %", f"{document['expressions']} held-out expressions")
    _label(right, "labels refined, %", "changes that help, %", f"{document['settings']} settings")
    left.legend(fontsize="small")
    right.axhline(50, color="black", linewidth=0.5)
    if right.get_legend_handles_labels()[0]:
        right.legend(fontsize="small")
    return _save(figure, path)


def _baselines(axes: Axes, document: dict[str, Any]) -> None:
    """Draw what a setting is compared with, mean IoU."""
    whole = document["whole_image_mean_iou"]
    for share, line, label in (
        (document["teacher"]["mean_iou"], ":", "teacher's own masks"),
        (whole, "--", "marking the whole image"),
        (HOLLOW * whole, "-.", f"{HOLLOW:g} times that: applied only above"),
    ):
        axes.axhline(100 * share, color="black", linewidth=1, linestyle=line, label=label)


def _dots(axes: Axes, rows: list[dict[str, Any]], marker: str, **style: Any) -> None:
    """Draw settings that changed some label: how many they refine, and how many changes help."""
    known = [row for row in rows if row["correction_precision"] is not None]
    if known:
        refined = [100 * row["match_rate"] for row in known]
        helped = [100 * row["correction_precision"] for row in known]
        axes.plot(refined, helped, marker, **style)


def write_quality_plot(quality: dict[str, Any], path: Place) -> Place:
    """Draw a round's histograms: IoU with the truth where it is known, expected IoU always.

    Every bar says how many labels it stands for. One that would leave the others flat is cut.
    """
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    histograms = quality["histograms"]
    expected = f"refined label, mean {_mean(quality['mean_expected_iou'])}"
    _bars(left, {expected: histograms["expected"]}, ["C1"])
    _label(left, "expected IoU, as the teacher sees it", "labels", f"{quality['labels']} labels")
    if quality["truths"]:
        kinds = {"raw": "teacher's mask", "refined": "refined label"}
        named = {
            f"{name}, mean {_mean(quality[f'{kind}_mean_iou'])}": histograms[kind]
            for kind, name in kinds.items()
        }
        _bars(right, named, ["C0", "C1"])
        title = f"helped {quality['helped']}, hurt {quality['hurt']}"
        _label(right, "IoU with the truth", "labels", f"{quality['truths']} labels: {title}")
    else:
        right.set_axis_off()
        right.text(0.5, 0.5, "truth unknown", ha="center")
    return _save(figure, path)


def _bars(axes: Axes, histograms: dict[str, list[int]], colours: list[str]) -> None:
    """Draw histograms over [0, 1] side by side, each bar with its count."""
    top = axis_top([count for row in histograms.values() for count in row], len(histograms))
    width = 0.9 / BINS / len(histograms)
    slant = 90 if top >= UPRIGHT and len(histograms) > 1 else 0
    for number, (name, counts) in enumerate(histograms.items()):
        shift = (number - (len(histograms) - 1) / 2) * width
        places = [(column + 0.5) / BINS + shift for column in range(BINS)]
        axes.bar(
            places,
            [min(count, top) for count in counts],
            width=width,
            color=colours[number],
            label=name,
        )
        for place, count in zip(places, counts, strict=True):
            if count > top:
                _write(
                    axes, place, 0.97 * top, f"{count}, cut", rotation=90, va="top", color="white"
                )
            elif count:
                _write(axes, place, count, str(count), rotation=slant, va="bottom")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, (1.2 if slant else 1.08) * top)
    axes.legend(fontsize="small")


def _write(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    axes.text(x, y, text, ha="center", fontsize=7, **style)


def axis_top(counts: list[int], tall: int) -> float:
    """Give where the axis of a histogram ends, more than 0.

    Args:
        counts: Heights of all bars.
        tall: Bars that may be cut: as many as stand at one place.

    Returns:
        The height of the highest bar or, where up to `tall` bars are more than `SQUASHING` times as
        high as the next, a third more than that one.
    """
    falling = sorted(counts, reverse=True)
    for number in range(1, min(tall, len(falling) - 1) + 1):
        if falling[number - 1] > SQUASHING * falling[number] > 0:
            return 4 / 3 * falling[number]
    return max(1, *falling)


def _mean(share: float | None) -> str:
    return "–" if share is None else f"{share:.2f}"


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
