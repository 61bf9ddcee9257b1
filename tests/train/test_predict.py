"""Teacher prediction: what is encoded once, flips, bfloat16, and the mask that comes back."""

from dataclasses import replace

import click
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.commands import Settings
from pipeline.images import read_image
from pipeline.manifest import load_manifest
from pipeline.paths import RunPaths
from refine.teacher_store import TeacherReader, encode_logits
from refine.upsample import upsample_align_corners
from train import augment
from train.config import NetworkConfig, TeacherConfig
from train.networks import NETWORKS
from train.predict import plan_teacher
from train.predictor import Passes, Predictor
from train.text import build_vocabulary, load_text_encoder, save_vocabulary
from train.trained import load_trained, read_trained

torch.set_num_threads(1)
CLIPSEG = {"image_size": 64, "table_size": 64, "vision_dim": 16, "vision_layers": 2,
           "vision_heads": 2, "extract_layers": (0, 1), "text_dim": 16, "text_heads": 2,
           "decoder_hidden": 16}  # fmt: skip
SHARE = 1e-4
"""Pixels of which the mask that comes back may differ from the teacher's own."""


@pytest.fixture(scope="module")
def manifest(finished_run):
    return load_manifest(RunPaths(finished_run[0]).manifest)


@pytest.fixture(scope="module")
def vocabulary(manifest, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    return save_vocabulary(build_vocabulary(list(manifest.expression_text)), folder)


@pytest.fixture(scope="module", params=["lavt", "clipseg"])
def predictor(request, finished_run, manifest, vocabulary):
    """The finished run's teacher; a CLIPSeg with random weights and the same words."""
    if request.param == "lavt":
        network, text = load_trained(
            read_trained(finished_run[0] / "round-1" / "student", ""), "cpu"
        )
    else:
        text = load_text_encoder(vocabulary, 20)
        torch.manual_seed(0)
        network = NETWORKS["clipseg"]("toy", CLIPSEG | {"vocab_size": text.vocab_size}).eval()
    return Predictor(
        manifest=manifest,
        network=network,
        architecture=NETWORKS[request.param],
        text=text,
        side=64,
        batch_size=8,
        passes=Passes(encode_once=False),
    )


def all_margins(predictor, rows):
    found = list(predictor.margins(rows))
    assert not any(failed for _, _, failed in found)
    return np.concatenate([margins for _, margins, _ in found])


def masks_of(margins):
    return np.stack([upsample_align_corners(margin, (256, 200)) > 0 for margin in margins])


def counted(predictor, **passes):
    """Count the rows that go through each part; the parts are the real ones."""
    seen = {"images": 0, "words": 0, "decoded": 0}
    entry = predictor.architecture

    def images(network, batch):
        seen["images"] += len(batch)
        return entry.encode_images(network, batch)

    def words(network, ids, mask):
        seen["words"] += len(ids)
        return entry.encode_words(network, ids, mask)

    def decode(network, features, found, mask):
        seen["decoded"] += len(mask)
        return entry.decode(network, features, found, mask)

    parts = replace(entry, encode_images=images, encode_words=words, decode=decode)
    return replace(predictor, architecture=parts, passes=Passes(**passes)), seen


def test_a_sentence_and_an_image_are_encoded_once(predictor, manifest):
    """However batches of 8 cut the images, which have more expressions than that."""
    rows = np.arange(manifest.num_expressions)
    sentences = {manifest.expression_text[row] for row in rows}
    images = np.unique(manifest.expression_image)
    assert len(sentences) < len(rows)
    assert len(rows) > 8 * len(images)
    plain = all_margins(predictor, rows)
    spying, seen = counted(predictor, encode_once=True)
    shared = all_margins(spying, rows)
    assert seen == {"images": len(images), "words": len(sentences), "decoded": len(rows)}
    assert np.allclose(shared, plain, atol=1e-4)
    assert (masks_of(shared) != masks_of(plain)).mean() < SHARE


def test_the_default_shares_where_images_can_be_shared(predictor, manifest):
    rows = manifest.expressions_of("train")[:9]
    spying, seen = counted(predictor)
    all_margins(spying, rows)
    shares = predictor.architecture.shares_images
    assert seen["decoded"] == (9 if shares else 0)  # LAVT runs whole, as it always has


def test_a_flip_is_the_mean_of_both_sides(predictor, manifest):
    """Mirrored pixels, swapped words, mirrored back: written out for one expression at a time."""
    rows = [
        row
        for row in manifest.expressions_of("train").tolist()
        if "left" in manifest.expression_text[row]
    ][:3]
    assert len(rows) == 3
    found = all_margins(replace(predictor, passes=Passes(flip=True)), np.array(rows))
    for row, margin in zip(rows, found, strict=True):
        image = int(manifest.expression_image[row])
        pixels = augment.resize_image(read_image(manifest.image_file(image), canvas=None), 64)
        sentence = manifest.expression_text[row]
        sides = []
        for mirrored in (False, True):
            view = np.ascontiguousarray(pixels[:, ::-1]) if mirrored else pixels
            words = sentence.lower()
            if mirrored:
                words = words.replace("left", "RIGHT").replace("right", "left").lower()
            ids, mask = predictor.text.encode([words])
            with torch.inference_mode():
                logits = predictor.network(
                    torch.from_numpy(augment.normalize(view))[None],
                    torch.from_numpy(ids),
                    torch.from_numpy(mask),
                )[0]
            own = (logits[1] - logits[0]).numpy()
            sides.append(own[:, ::-1] if mirrored else own)
        assert np.abs(sides[0] - sides[1]).max() > 1e-3  # the sides do differ
        assert np.allclose(margin, (sides[0] + sides[1]) / 2, atol=1e-4)


def test_a_flip_encodes_each_side_once(predictor, manifest):
    rows = manifest.expressions_of("train")[:30]
    images = np.unique(manifest.expression_image[rows])
    spying, seen = counted(predictor, encode_once=True, flip=True)
    flipped = all_margins(spying, rows)
    assert seen["images"] == 2 * len(images)
    apart = all_margins(replace(predictor, passes=Passes(flip=True)), rows)
    assert np.allclose(flipped, apart, atol=1e-4)


def test_bfloat16_is_close_and_not_the_same(predictor, manifest):
    rows = manifest.expressions_of("train")[:16]
    plain = all_margins(predictor, rows)
    half = all_margins(replace(predictor, passes=Passes(amp=True)), rows)
    assert half.dtype == np.float32
    assert not np.array_equal(half, plain)
    assert np.abs(half - plain).mean() < 0.1 * plain.std()


def test_the_stored_mask_is_the_teachers_own(predictor, manifest, capsys):
    """Network, torch's upsampling and argmax, against float16 and ours, at the image's size."""
    rows = manifest.expressions_of("train")[:120]
    differing = total = 0
    for row, margin in zip(rows, all_margins(predictor, rows), strict=True):
        size = manifest.size_of(manifest.expression_image[row])
        two = torch.from_numpy(np.stack([np.zeros_like(margin), margin]))[None]
        own = F.interpolate(two, size, mode="bilinear", align_corners=True).argmax(1)[0]
        stored = encode_logits(margin[None])[0]
        mask = upsample_align_corners(stored, size) > 0
        differing += int((mask != own.bool().numpy()).sum())
        total += mask.size
    with capsys.disabled():
        click.echo(f"\n{differing} of {total} pixels differ: {100 * differing / total:.5f} %")
    assert total > 120 * 100 * 100
    assert differing / total < SHARE


def test_the_store_holds_what_the_network_says_now(finished_run, manifest):
    """`teacher.zarr` of the finished run beside the network asked anew, pixel by pixel."""
    run_dir = finished_run[0]
    network, text = load_trained(read_trained(run_dir / "round-0" / "student", ""), "cpu")
    stored = TeacherReader(RunPaths(run_dir).teacher(1)).read(range(40))
    differing = total = 0
    for expression, logit in zip(stored["expression"], stored["logit"], strict=True):
        image = int(manifest.expression_image[expression])
        pixels = augment.resize_image(read_image(manifest.image_file(image), canvas=None), 64)
        ids, mask = text.encode([manifest.expression_text[int(expression)]])
        with torch.inference_mode():
            logits = network(
                torch.from_numpy(augment.normalize(pixels))[None],
                *map(torch.from_numpy, (ids, mask)),
            )
            size = manifest.size_of(image)
            own = F.interpolate(logits, size, mode="bilinear", align_corners=True).argmax(1)[0]
        differing += int(((upsample_align_corners(logit, size) > 0) != own.bool().numpy()).sum())
        total += own.numel()
    assert differing / total < SHARE


def test_plain_stores_keep_their_fingerprint(finished_run, small_config):
    """What is off leaves no trace, so that stores made before stay valid."""
    run_dir = finished_run[0]
    config = Settings(small_config, run_dir, ()).section("teacher", TeacherConfig)
    plan, trained = plan_teacher(config, run_dir, 1)
    assert set(plan.decides) == {"algorithm_version", "batch_size", "inputs"}
    prints = {plan.fingerprint}
    for change in ({"flip": True}, {"amp": True}, {"encode_once": True}):
        prints.add(plan_teacher(replace(config, **change), run_dir, 1)[0].fingerprint)
    assert len(prints) == 4
    assert plan_teacher(replace(config, encode_once=False), run_dir, 1)[0].fingerprint in prints
    assert trained.network == NetworkConfig(
        size="toy", options=trained.network.options, max_tokens=20
    )
