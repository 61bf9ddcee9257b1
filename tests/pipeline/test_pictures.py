"""Pictures of rows: what they show, how they are laid out, and what their captions say."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageFont

from pipeline import drawing
from pipeline.cells import build_cells
from pipeline.cli import inspect_shards
from pipeline.columns import StringColumn
from pipeline.drawing import MARGIN_PX, PAPER, borders, cell_colours, sheet, smallest_over
from pipeline.errors import StoreError
from pipeline.export import export_coco
from pipeline.inspection import (
    SCORELESS,
    corners_on_corners,
    draw_row,
    draw_rows,
    label_panels,
)
from pipeline.paths import RunPaths
from pipeline.records import note_retry
from pipeline.store_rows import StoreRows
from refine.contact_sheet import write_contact_sheet
from refine.labels import LabelReader
from refine.quality import mask_iou
from refine.stage import RefineConfig, refine_labels
from refine.strategies import ALWAYS_ANSWER, ChainLink
from refine.teacher_store import TeacherReader
from refine.upsample import upsample_align_corners
from tests.refine.scene_run import make_scenes

CHAIN = (
    ChainLink(strategy="cpi-o", params={"min_mask_coverage": 0.9}),
    ChainLink(strategy="pwa"),
)
PANEL = 320


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A run of ten scenes up to the labels of round 1; tests must not change it."""
    run_dir = tmp_path_factory.mktemp("scenes")
    make_scenes(run_dir)
    refine_labels(RefineConfig(chain=CHAIN), run_dir, 1)
    return run_dir


@pytest.fixture(scope="module")
def labels(scenes):
    return RunPaths(scenes).labels(1)


def row_by(labels, source):
    """Give the first row that a strategy decided."""
    reader = LabelReader(labels)
    rows = range(len(reader.scalars()["source"]))
    return next(row for row in rows if reader.read(row).source == source)


def captions(panels):
    return [caption for _, caption in panels]


def test_a_label_is_shown_with_all_that_it_was_made_of(scenes, labels):
    opened, row = StoreRows(labels), row_by(labels, "cpi-o")
    panels = label_panels(opened, row)
    assert list(panels) == ["image", "teacher", "candidates", "label", "weight", "truth"]
    label, manifest = LabelReader(labels).read(row), opened.manifest
    truth = manifest.truth(manifest.expression_object[label.expression], max(label.mask.shape))
    logit = TeacherReader(RunPaths(scenes).teacher(1)).read(range(row, row + 1))["logit"][0]
    teacher = upsample_align_corners(logit, label.mask.shape) > 0
    said = {name: caption for name, (_, caption) in panels.items()}
    file = manifest.image_path[label.image]
    assert said["image"] == f"row {row} · {manifest.expression_text[label.expression]}\n{file}"
    assert said["teacher"].startswith(
        f"teacher of round-1, IoU {mask_iou(teacher, truth)[2]:.2f}\nconfidence 0."
    )
    iou = mask_iou(label.mask, truth)[2]
    assert said["label"] == f"cpi-o, IoU {iou:.2f}\nscore {label.score:.2f}"
    assert said["weight"] == "weight\nmean 1.00"
    assert "of candidates.zarr" in said["candidates"]
    edge = drawing.outline(teacher)
    assert edge.any()
    assert (panels["teacher"][0][edge] == 255).all()
    assert tuple(panels["truth"][0][drawing.outline(truth)][0]) == drawing.TRUTH_COLOUR


def test_the_row_of_the_candidates_is_named(scenes, labels):
    opened, row = StoreRows(labels), row_by(labels, "pwa")
    said = label_panels(opened, row)["candidates"][1]
    position = int(said.split("\nrow ")[1].split(" of ")[0])
    candidates = StoreRows(RunPaths(scenes).candidates)
    assert candidates.image(position) == opened.image(row)
    assert captions(draw_row(candidates, position))[1] == said.split("\nrow ")[0]


def test_who_keeps_the_teachers_mask_has_no_score(labels):
    assert SCORELESS == ALWAYS_ANSWER
    panels = label_panels(StoreRows(labels), row_by(labels, "pwa"))
    assert panels["label"][1].startswith("pwa: teacher's mask, IoU 0.")
    assert "score" not in panels["label"][1]
    assert panels["weight"][1].startswith("weight, dark 0 to yellow 1\nmean 0.")


def test_an_unknown_truth_is_said_and_not_drawn(labels):
    opened, row = StoreRows(labels), row_by(labels, "pwa")
    unknown = StringColumn.from_strings([""] * opened.manifest.num_objects)
    opened.manifest = dataclasses.replace(opened.manifest, object_rle=unknown)
    panels = label_panels(opened, row)
    assert "truth" not in panels
    assert panels["label"][1] == "pwa: teacher's mask\ntruth unknown"
    assert "IoU" not in panels["teacher"][1]


def test_what_labels_were_not_made_of_is_not_shown_beside_them(scenes, labels, tmp_path):
    run_dir = shutil.copytree(scenes, tmp_path / "run")
    paths = RunPaths(run_dir)
    shutil.rmtree(paths.teacher(1).with_suffix(".stage"))
    note_retry(paths.candidates)  # what failed is being made anew
    panels = label_panels(StoreRows(paths.labels(1)), 0)
    assert list(panels) == ["image", "label", "weight", "truth"]


def test_a_teacher_is_shown_with_its_mask_and_the_truth(scenes):
    opened = StoreRows(RunPaths(scenes).teacher(1))
    panels = draw_row(opened, 2)
    assert [caption.split(",")[0] for caption in captions(panels)[1:]] == [
        "teacher of round-1",
        "truth",
    ]
    logit = opened.array("logit", 2)
    edge = drawing.outline(upsample_align_corners(logit, panels[0][0].shape[:2]) > 0)
    assert edge.any()
    assert (panels[1][0][edge] == 255).all()


@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 6)),
                  elements=st.floats(-8, 8, width=16)),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
)  # fmt: skip
def test_the_plain_way_to_a_mask_is_the_fast_one(logit_hw, size):
    plain, fast = corners_on_corners(logit_hw, size), upsample_align_corners(logit_hw, size)
    assert plain.shape == size
    assert plain == pytest.approx(fast, abs=1e-4)


def test_each_row_keeps_to_its_own_lines(labels):
    one, two = (draw_rows(labels, [row]) for row in (0, 1))
    both = draw_rows(labels, [0, 1])
    assert both.shape[1] == one.shape[1] == 6 * (PANEL + MARGIN_PX) + MARGIN_PX
    assert np.array_equal(both[: len(one)], one)
    assert np.array_equal(both[-len(two) :], two)
    assert len(both) == len(one) + len(two) - MARGIN_PX


def test_any_candidate_can_be_shown(scenes):
    store = RunPaths(scenes).candidates
    opened = StoreRows(store)
    found = opened.candidates(0)
    last = found.cells.num_candidates - 1
    assert last >= 6
    best = int(found.predicted_iou.argmax())
    assert captions(draw_row(opened, 0))[2].startswith(f"candidate {best}, ")
    panels = draw_row(opened, 0, [last, 0])
    assert [text.split(",")[0] for text in captions(panels)[2:]] == [
        f"candidate {last}",
        "candidate 0",
    ]
    many = draw_rows(store, [0], list(range(last)))
    assert many.shape[1] == 6 * (PANEL + MARGIN_PX) + MARGIN_PX  # the others on further lines
    with pytest.raises(StoreError, match=f"row 0 has {last + 1} candidates.*asked for {last + 1}"):
        draw_rows(store, [0], [last + 1])
    with pytest.raises(StoreError, match="holds labels, no single candidates"):
        draw_rows(RunPaths(scenes).labels(1), [0], [0])


def test_borders_are_drawn_while_they_leave_something_to_see():
    picture = np.full((20, 20, 3), 90, np.uint8)
    halves = np.ones((20, 20), np.uint16)
    halves[:, 10:] = 2
    drawn = cell_colours(picture, halves)
    assert (drawn[:, 10] == 255).all()
    assert not (drawn[:, 9] == 255).all()
    board = np.indices((20, 20)).sum(0).astype(np.uint16) % 2 + 1
    assert borders(board).mean() > 0.9
    assert not (cell_colours(picture, board) == 255).all(axis=2).any()


def test_small_candidates_lie_over_large_ones():
    masks = np.zeros((3, 1, 6), np.bool_)
    masks[0, 0, :1] = True
    masks[1, 0, :5] = True
    masks[2, 0, 2:4] = True
    assert smallest_over(build_cells(masks)).tolist() == [[1, 2, 3, 3, 2, 0]]
    assert smallest_over(build_cells(masks[:, :, ::-1])).tolist() == [[0, 2, 3, 3, 2, 1]]
    equal = np.stack([masks[1], masks[1]])
    assert smallest_over(build_cells(equal)).max() == 1
    assert smallest_over(build_cells(masks[:0])).tolist() == [[0] * 6]


SIDE, FONT = 120, ImageFont.load_default(size=13)


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"]), max_size=600))
def test_captions_stay_below_their_picture(text):
    lines = drawing._wrap(text, FONT, SIDE)
    assert len(lines) <= 2
    assert all(FONT.getlength(line) <= SIDE for line in lines)
    words = text.split()
    if lines:
        assert lines[0][0] == words[0][0]
        assert lines[-1][-1] == words[-1][-1]
    else:
        assert not words


def test_a_caption_that_is_too_long_loses_its_middle():
    file = "train2014/COCO_train2014_000000581857.jpg"
    (line,) = drawing._wrap(file, FONT, SIDE)
    assert line.endswith("7.jpg")
    assert line.startswith("train")
    assert "…" in line
    sentence = "the small red ball on the left"
    assert " ".join(drawing._wrap(sentence, FONT, SIDE)) == sentence
    picture = np.zeros((SIDE, SIDE, 3), np.uint8)
    drawn = sheet([[(picture, f"{file}\n{sentence} {file}"), (picture, "")]], SIDE)
    beside = drawn[MARGIN_PX + SIDE :, MARGIN_PX + SIDE : 2 * MARGIN_PX + SIDE]
    assert (beside == PAPER).all()
    assert (drawn[MARGIN_PX + SIDE :, :SIDE] != PAPER).any()


def test_the_contact_sheet_names_rows_that_show_finds(scenes, labels, tmp_path):
    path = write_contact_sheet(scenes, 1, tmp_path / "sheet.png", 2)
    with Image.open(path) as opened:
        drawn = np.asarray(opened)
    count = len(LabelReader(labels).scalars()["source"])
    rows = [int(step * count) for step in (0.25, 0.75)]
    panels = [label_panels(StoreRows(labels), row) for row in rows]
    names = ("image", "teacher", "candidates", "label", "truth")
    assert np.array_equal(drawn, sheet([[row[name] for name in names] for row in panels]))
    assert [row["image"][1].startswith(f"row {n} · ") for row, n in zip(panels, rows, strict=True)]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_an_export_has_the_ids_of_the_data_set_and_the_rows(labels, tmp_path):
    export_coco(labels, tmp_path / "l.json", [1, 4])
    document = json.loads((tmp_path / "l.json").read_text())
    manifest, reader = StoreRows(labels).manifest, LabelReader(labels)
    for row, entry in zip((1, 4), document["annotations"], strict=True):
        label = reader.read(row)
        assert entry["row"] == row
        own = manifest.object_id[manifest.expression_object[label.expression]]
        assert entry["dataset_object_id"] == own
    images = {entry["id"]: entry["dataset_image_id"] for entry in document["images"]}
    assert images == {image: manifest.image_id[image] for image in images}


def test_candidates_are_asked_for_by_number(scenes, tmp_path):
    paths, out = RunPaths(scenes), tmp_path / "c.png"
    words = ["show", str(paths.candidates), "--row", "1", "--out", str(out)]
    asked = CliRunner().invoke(inspect_shards, [*words, "--candidate", "3", "--candidate", "0"])
    assert asked.exit_code == 0, asked.output
    with Image.open(out) as drawn:
        assert np.array_equal(np.asarray(drawn), draw_rows(paths.candidates, [1], [3, 0]))
    words[1] = str(paths.labels(1))
    refused = CliRunner().invoke(inspect_shards, [*words, "--candidate", "3"])
    assert refused.exit_code == 1
    assert refused.stderr.endswith("holds labels, no single candidates; give candidates.zarr\n")
