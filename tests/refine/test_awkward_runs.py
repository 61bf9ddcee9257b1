"""What refinement makes of stores that are not as they should be: a stated outcome for each."""

import json
import shutil

import numpy as np
import pytest

from pipeline.errors import StoreError
from pipeline.paths import RunPaths
from refine.labels import LabelReader
from refine.probability import ProbabilityConfig
from refine.stage import RefineConfig, config_of_round, refine_labels, with_strategy
from refine.strategies import STRATEGIES, ChainLink
from tests.refine.small_run import Picture, make_run

SIZE = (12, 16)
LEFT = np.zeros(SIZE, np.bool_)
LEFT[2:10, 1:7] = True
RIGHT = np.zeros(SIZE, np.bool_)
RIGHT[2:10, 9:15] = True


def logit(mask, strength=4.0):
    return np.where(mask, strength, -strength).astype(np.float16)


def picture(**changes):
    about = {
        "masks": np.stack([LEFT, RIGHT]),
        "logits": np.stack([logit(LEFT), logit(RIGHT)]),
        "truth": np.stack([LEFT, RIGHT]),
    }
    return Picture(**(about | changes))


def refine(run_dir, pictures, config=None, **options):
    make_run(run_dir, pictures, **options)
    return refine_labels(config or with_strategy(RefineConfig(shard_size=2), "iom"), run_dir, 1)


def sources(run_dir):
    reader = LabelReader(RunPaths(run_dir).labels(1))
    count = len(reader.scalars()["source"])
    labels = [reader.read(row) for row in range(count)]
    return [None if label is None else label.source for label in labels]


def test_what_is_as_it_should_be(tmp_path):
    summary, quality = refine(tmp_path, [picture(), picture()])
    assert sources(tmp_path) == ["iom"] * 4
    assert quality["refined_mean_iou"] == 1.0
    assert quality["best_candidate_mean_iou"] == quality["best_union_mean_iou"] == 1.0
    assert not summary.failures
    assert (tmp_path / "round-1" / "quality.png").stat().st_size > 5000


def test_candidates_of_another_size_fail_their_expressions_alone(tmp_path):
    wrong = picture(size=(9, 16))
    wrong.truth = wrong.truth[:, :9]
    summary, quality = refine(tmp_path, [picture(), wrong])
    assert sources(tmp_path) == ["iom", "iom", None, None]
    assert quality["failed"] == 2
    reasons = {failure.reason for failure in summary.failures}
    assert reasons == {
        "its candidates are of size (12, 16), expected (9, 16); "
        "make them again with 'sam-candidates --force'"
    }


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("context", ["none", "rivals"])
def test_a_logit_that_is_not_finite_fails_its_expression_alone(tmp_path, value, context):
    bad = picture()
    bad.logits[0, 3, 4] = value
    config = RefineConfig(
        chain=(ChainLink(strategy="soft-iou"), ChainLink(strategy="pwa")),
        probability=ProbabilityConfig(context=context),
        shard_size=2,
    )
    summary, _ = refine(tmp_path, [bad, picture()], config)
    assert sources(tmp_path) == [None, "soft-iou", "soft-iou", "soft-iou"]
    assert [failure.item for failure in summary.failures] == ["0.png: 'thing 0'"]
    assert "not finite; run 'predict-teacher'" in summary.failures[0].reason


def test_what_the_teacher_could_not_predict_has_no_label(tmp_path):
    summary, quality = refine(tmp_path, [picture(valid=[1, 0])])
    assert sources(tmp_path) == ["iom", None]
    assert "the teacher could not predict it" in summary.failures[0].reason
    assert quality["labels"] == 1


def test_missing_teacher_rows_are_refused_before_anything_is_written(tmp_path):
    make_run(tmp_path, [picture(), picture()], teacher_rows=2)
    with pytest.raises(StoreError, match="predict-teacher --round 1"):
        refine_labels(with_strategy(RefineConfig(shard_size=2), "iom"), tmp_path, 1)
    assert not RunPaths(tmp_path).labels(1).exists()


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_an_image_without_candidates_keeps_the_teachers_mask(tmp_path, strategy):
    nothing, failed = picture(masks=np.zeros((0, *SIZE), np.bool_)), picture(masks=None)
    summary, quality = refine(
        tmp_path, [nothing, failed], with_strategy(RefineConfig(shard_size=2), strategy)
    )
    assert not summary.failures
    assert quality["match_rate"] == 0
    assert quality["refined_mean_iou"] == 1.0
    assert quality["best_candidate_mean_iou"] == 0.0


@pytest.mark.parametrize("strategy", list(STRATEGIES))
@pytest.mark.parametrize("full", [False, True])
def test_an_empty_and_a_full_teacher_mask_get_a_label(tmp_path, strategy, full):
    flat = np.stack([logit(np.full(SIZE, full))] * 2)
    summary, quality = refine(
        tmp_path, [picture(logits=flat)], with_strategy(RefineConfig(shard_size=2), strategy)
    )
    assert not summary.failures
    assert quality["labels"] == 2
    assert quality["empty_raw"] == (0 if full else 2)
    document = json.loads(RunPaths(tmp_path).quality(1).read_text())
    assert sum(document["sources"].values()) == 2
    if not full and strategy in ("iom", "cpi", "cpi-u", "cpi-o", "sepl"):
        assert document["sources"] == {"pwa": 2}  # nothing overlaps an empty mask


def test_another_config_is_refused_with_the_difference(tmp_path):
    refine(tmp_path, [picture()])
    config = RefineConfig(
        chain=(ChainLink(strategy="iom", params={"min_iou": 0.6}), ChainLink(strategy="pwa")),
        shard_size=2,
    )
    with pytest.raises(StoreError, match=r"min_iou.*0\.5.*0\.6"):
        refine_labels(config, tmp_path, 1)


def test_rivals_part_what_the_teacher_confuses(tmp_path):
    """Both sentences light up both things, each its own a little more."""
    both = LEFT | RIGHT
    confused = np.stack([logit(both, 3), logit(both, 3)])
    confused[0][LEFT] += 2
    confused[1][RIGHT] += 2
    found = {}
    for context in ("none", "rivals"):
        config = RefineConfig(
            chain=(ChainLink(strategy="vote"), ChainLink(strategy="none")),
            probability=ProbabilityConfig(context=context),
            shard_size=2,
        )
        _, quality = refine(tmp_path / context, [picture(logits=confused)], config)
        assert quality["raw_mean_iou"] == pytest.approx(0.5)  # the teacher's own mask, in either
        found[context] = quality["refined_mean_iou"]
    assert found == {"none": pytest.approx(0.5), "rivals": 1.0}


@pytest.mark.parametrize("context", ["siblings", "rivals"])
@pytest.mark.parametrize("shard_size", [1, 2, 3, 64])
def test_context_reaches_across_shards(tmp_path, context, shard_size):
    rng = np.random.default_rng(0)
    pictures = [
        picture(
            logits=rng.normal(0, 2, (5, *SIZE)).astype(np.float16),
            truth=np.stack([LEFT, LEFT, RIGHT, RIGHT, RIGHT]),
            objects=[0, 0, 1, 1, 1],
        )
        for _ in range(3)
    ]
    config = RefineConfig(
        chain=(ChainLink(strategy="vote"), ChainLink(strategy="none")),
        probability=ProbabilityConfig(context=context, slope=0.7, bias=0.1),
        shard_size=shard_size,
    )
    refine(tmp_path, pictures, config)
    reader = LabelReader(RunPaths(tmp_path).labels(1))
    masks = [reader.read(row).mask for row in range(15)]
    covered = LEFT | RIGHT  # elsewhere a vote keeps what the teacher has
    for start in range(0, 15, 5):  # expressions of one object get one label
        assert np.array_equal(masks[start] & covered, masks[start + 1] & covered)
        assert np.array_equal(masks[start + 2] & covered, masks[start + 4] & covered)
        if context == "rivals":
            assert not (masks[start] & masks[start + 2] & (LEFT | RIGHT)).any()


def test_what_is_dropped_does_not_depend_on_how_much_was_done(tmp_path):
    sure = [picture(logits=np.stack([logit(LEFT, s), logit(RIGHT, s)])) for s in (4, 3, 2, 1)]
    config = RefineConfig(
        chain=(ChainLink(strategy="drop", params={"share": 0.5}), ChainLink(strategy="pwa")),
        shard_size=2,
    )
    make_run(tmp_path, sure, teacher_rows=4)
    with pytest.raises(StoreError, match="predict-teacher --round 1"):
        refine_labels(config, tmp_path, 1, limit=4)


def test_of_equally_sure_labels_the_first_are_dropped(tmp_path):
    config = RefineConfig(
        chain=(ChainLink(strategy="drop", params={"share": 0.5}), ChainLink(strategy="pwa")),
        shard_size=2,
    )
    refine(tmp_path, [picture(logits=np.stack([logit(LEFT), logit(LEFT)]))] * 2, config)
    assert sources(tmp_path) == ["drop", "drop", "pwa", "pwa"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("teacher", "predictions of another data set; run 'predict-teacher --round 1 --force'"),
        ("candidates", "candidates of other images; run 'sam-candidates --force'"),
    ],
)
def test_stores_of_another_data_set_are_refused(tmp_path, other, message):
    make_run(tmp_path / "one", [picture(), picture()])
    make_run(tmp_path / "other", [picture()])
    paths = RunPaths(tmp_path / "one")
    shutil.rmtree(paths.manifest)
    shutil.copytree(tmp_path / "other" / "manifest", paths.manifest)
    if other == "teacher":
        for name in ("candidates.zarr", "candidates.stage"):
            shutil.rmtree(tmp_path / "one" / name)
            shutil.copytree(tmp_path / "other" / name, tmp_path / "one" / name)
    with pytest.raises(StoreError, match=message):
        refine_labels(RefineConfig(), tmp_path / "one", 1)


@pytest.mark.parametrize("text", ["[]", "null", "{", '{"chain": 3, "probability": {}}'])
def test_a_damaged_choice_is_refused(tmp_path, text):
    make_run(tmp_path, [picture()])
    RunPaths(tmp_path).chosen_strategy(1).write_text(text)
    with pytest.raises(ValueError, match=r"strategy\.json"):
        config_of_round(RefineConfig(), tmp_path, 1)


@pytest.mark.parametrize("shard_size", [1, 3, 64])
@pytest.mark.parametrize("context", ["none", "rivals"])
def test_labels_are_the_same_for_any_shard_size(tmp_path, context, shard_size):
    rng = np.random.default_rng(1)
    pictures = [picture(logits=rng.normal(0, 2, (2, *SIZE)).astype(np.float16)) for _ in range(4)]
    found = []
    for size in (2, shard_size):
        config = RefineConfig(
            chain=(
                ChainLink(strategy="drop", params={"share": 0.3}),
                ChainLink(strategy="best-union", params={"min_expected_iou": 0.0}),
                ChainLink(strategy="pwa"),
            ),
            probability=ProbabilityConfig(context=context),
            shard_size=size,
        )
        refine(tmp_path / f"{len(found)}", pictures, config)
        reader = LabelReader(RunPaths(tmp_path / f"{len(found)}").labels(1))
        found.append([reader.read(row) for row in range(8)])
    for one, other in zip(*found, strict=True):
        assert one.source == other.source
        assert np.array_equal(one.mask, other.mask)
        assert np.array_equal(one.weight, other.weight)


def test_dropped_labels_are_stored_but_not_matched(tmp_path):
    sure = [picture(logits=np.stack([logit(LEFT, s), logit(RIGHT, s)])) for s in (1, 2, 3, 4)]
    config = RefineConfig(
        chain=(
            ChainLink(strategy="drop", params={"share": 0.25}),
            ChainLink(strategy="iom"),
            ChainLink(strategy="pwa"),
        ),
        shard_size=3,
    )
    _, quality = refine(tmp_path, sure, config)
    assert sources(tmp_path) == ["drop", "drop", *["iom"] * 6]
    assert quality["match_rate"] == 0.75
    assert LabelReader(RunPaths(tmp_path).labels(1)).read(0).weight.max() == 0
