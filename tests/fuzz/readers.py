"""Everything that reads files which users hand us, as functions of bytes, and files to begin with.

A reader makes something sound of the bytes, or raises `SemiresError` in one line; anything else
is a crash, as are two seconds and a GiB.
"""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.candidates import CandidateReader
from pipeline.collect import collect
from pipeline.columns import file_sha256
from pipeline.commands import Settings
from pipeline.data_config import DataConfig
from pipeline.errors import ConfigError, ItemError, ManifestError, SemiresError
from pipeline.exchange import ImportConfig, open_masks
from pipeline.images import read_image, read_size
from pipeline.manifest import load_manifest
from pipeline.prepare import read_failures
from pipeline.readers import READERS as FORMATS
from pipeline.readers.ids import read_image_ids
from pipeline.records import files_are_whole, read_any_done, require_rows
from pipeline.run_contents import read_arrays
from pipeline.sam.hub_files import read_json as read_hub_json
from pipeline.sam.models import SAM_MODELS, _read_checkpoint
from pipeline.sam.tiny import load_vit_tiny_demo
from pipeline.segmentation import encode_segmentation
from refine.labels import LabelReader
from refine.teacher_store import TeacherReader
from tests.fuzz.seeds import CANVAS, small_run, write_data
from tests.pipeline.exchange.small_masks import SIZE, manifest_of
from train.checkpoint import load_checkpoint, load_weights_file
from train.cli import job_config
from train.comparison import compare_with
from train.config import EvaluateConfig
from train.label_rows import FastLabelReader
from train.outcomes import load_outcomes
from train.published.reading import read_published
from train.published.sections import recognise
from train.text import load_text_encoder

CORPUS = Path(__file__).parent / "corpus"
Read = Callable[[bytes], object]


@dataclass(frozen=True, slots=True)
class FuzzedReader:
    """Something that reads a file of the user's."""

    kind: str
    """How its files are damaged, see `tests.fuzz.mutations`."""
    open: Callable[[Path], Read]
    """Given an empty folder, what reads bytes as a file in it."""
    weight: int
    """Its part of the cases; slow readers get fewer."""


def _items(config: DataConfig, folder: Path) -> object:
    """Read a data set to the end and check its objects."""
    source = FORMATS[config.reader](config, folder, 1, None)
    found = collect(source, config, limit=None, progress=None)
    for failure in found.failures:
        assert "\n" not in failure.reason, failure.reason
        assert len(failure.reason) < 1000, failure.reason
    return found.objects


def _config(folder: Path) -> Read:
    def read(content: bytes) -> object:
        (folder / "stages.yaml").write_bytes(content)
        return job_config(Settings(folder / "stages.yaml", folder, ()))

    return read


def _overrides(folder: Path) -> Read:
    (folder / "stages.yaml").write_text("version: 1\ndata: {reader: scenes}\n")

    def read(content: bytes) -> object:
        # A command line holds no line ends here, and no bytes that are no text.
        lines = content.decode("utf-8", "surrogateescape").split("\n")
        given = tuple(line for line in lines if line)
        return job_config(Settings(folder / "stages.yaml", folder, given))

    return read


def _data(name: str, config: Callable[[Path], DataConfig]) -> Callable[[Path], Read]:
    """Give the reader of a data set of which one file is fuzzed."""

    def opened(folder: Path) -> Read:
        write_data(folder)

        def read(content: bytes) -> object:
            (folder / name).write_bytes(content)
            return _items(config(folder), folder)

        return read

    return opened


def _refer(folder: Path) -> DataConfig:
    return DataConfig(
        reader="refer",
        annotations=folder / "refs(unc).p",
        instances=folder / "instances.json",
        images=folder / "images",
    )


def _split(folder: Path) -> DataConfig:
    return DataConfig(
        reader="semires-split",
        annotations=folder / "split.json",
        refs=folder / "refs.json",
        instances=folder / "instances.json",
        images=folder / "images",
    )


def _jsonl(folder: Path) -> DataConfig:
    return DataConfig(reader="jsonl", annotations=folder / "data.jsonl")


def _ids(suffix: str) -> Callable[[Path], Read]:
    return _one_file(f"ids{suffix}", read_image_ids)


def _one_file(name: str, function: Callable[[Path], object]) -> Callable[[Path], Read]:
    def opened(folder: Path) -> Read:
        def read(content: bytes) -> object:
            (folder / name).write_bytes(content)
            return function(folder / name)

        return read

    return opened


def _image(path: Path) -> object:
    facts = read_size(path)
    pixels = read_image(path, canvas=32, size=facts.size)
    assert pixels.shape[2] == 3
    assert max(pixels.shape[:2]) <= 32
    return facts


def _mask_png(path: Path) -> object:
    return encode_segmentation(path.name, (12, 20), path.parent)


def _masks(format_name: str, name: str) -> Callable[[Path], Read]:
    """Give the reader of masks made before."""
    manifest = manifest_of(["1.jpg", "2.jpg"])

    def opened(folder: Path) -> Read:
        def read(content: bytes) -> object:
            (folder / name).write_bytes(content)
            place = folder / name if format_name == "coco" else folder
            source = open_masks(ImportConfig(format=format_name, path=place), manifest)
            found = []
            for row in range(manifest.num_images):
                try:
                    found.append(source.masks_of(row, SIZE))
                except ItemError as error:
                    _assert_one_line(error)
                    continue
                assert found[-1].masks.shape[1:] == SIZE
            if not found:
                raise ItemError("no image of it can be read")
            return found

        return read

    return opened


def _assert_one_line(error: Exception) -> None:
    assert "\n" not in str(error), str(error)
    assert len(str(error)) < 2000, str(error)


def _published(path: Path) -> object:
    return recognise(read_published(str(path)).content)


def _sentences(path: Path) -> object:
    return load_text_encoder(path).encode(["the left cat"])


def _in_run(place: str, function: Callable[[Path], object]) -> Callable[[Path], Read]:
    """Give what reads a finished run of which one file is fuzzed."""

    def opened(folder: Path) -> Read:
        run = small_run(folder / "run")
        target = run / place
        whole = target.read_bytes()

        def read(content: bytes) -> object:
            target.write_bytes(content)
            try:
                return function(run)
            finally:
                target.write_bytes(whole)

        return read

    return opened


def _done(run: Path) -> object:
    record = read_any_done(run / "candidates.zarr", 0)
    if record is None or not files_are_whole(run / "candidates.zarr", record):
        raise ManifestError("not a record of this shard")
    return record


def _plan(run: Path) -> object:
    return require_rows(run / "candidates.zarr", "sam-candidates")


def _manifest(run: Path) -> object:
    manifest = load_manifest(run / "manifest")
    return [manifest.describe_expression(row) for row in range(manifest.num_expressions)]


def _candidates(run: Path) -> object:
    reader = CandidateReader(run / "candidates.zarr")
    read_arrays(run / "candidates.zarr")
    return [reader.read(row) for row in range(2)]


def _teacher(run: Path) -> object:
    reader = TeacherReader(run / "round-1" / "teacher.zarr")
    return reader.scalars(), reader.read(range(2))


def _labels(run: Path) -> object:
    reader = LabelReader(run / "round-1" / "labels.zarr")
    fast = FastLabelReader(run / "round-1" / "labels.zarr")
    return [(reader.read(row), fast.read(row)) for row in range(2)]


def _metrics(run: Path) -> object:
    own = load_outcomes(run / "round-1" / "outcomes-val.npz")
    here = {"inputs": {"manifest": "0" * 64}}
    config = EvaluateConfig(resamples=2)
    return compare_with(config, here, own, run / "round-1" / "metrics.json", "val")


def _sam(path: Path) -> object:
    """Read a checkpoint, and offer it to a network, which no small file fits."""
    state = _read_checkpoint(path)
    with suppress(ConfigError):
        SAM_MODELS["vit_b"].build(path)
    return state


def _small_sam(path: Path) -> object:
    state = load_weights_file(path)
    with suppress(ConfigError):
        load_vit_tiny_demo(path)
    return state


def _mask_of(run: Path) -> object:
    manifest = load_manifest(run / "manifest")
    return [manifest.truth(row, CANVAS) for row in range(manifest.num_objects)]


def _checkpoint(run: Path) -> object:
    """Read a checkpoint whose hashes are right: whoever changes a file can change those too."""
    folder = run / "student" / "step-00000002"
    about = folder / "checkpoint.json"
    whole, marker = about.read_bytes(), (folder / "done").read_bytes()
    try:
        try:
            document = json.loads(whole)
            document["files"]["state.pt"] = file_sha256(folder / "state.pt")
            about.write_text(json.dumps(document))
        except (ValueError, TypeError, KeyError, RecursionError):
            about.write_bytes(whole)
        (folder / "done").write_text(file_sha256(about))
        return load_checkpoint(folder)
    finally:
        about.write_bytes(whole)
        (folder / "done").write_bytes(marker)


READERS: dict[str, FuzzedReader] = {
    "config": FuzzedReader("yaml", _config, 6),
    "set": FuzzedReader("bytes", _overrides, 6),
    "refs-pickle": FuzzedReader("bytes", _data("refs(unc).p", _refer), 12),
    "instances": FuzzedReader("json", _data("instances.json", _refer), 8),
    "jsonl": FuzzedReader("jsonl", _data("data.jsonl", _jsonl), 8),
    "ids-text": FuzzedReader("bytes", _ids(".txt"), 4),
    "ids-json": FuzzedReader("json", _ids(".json"), 4),
    "split": FuzzedReader("json", _data("split.json", _split), 6),
    "image": FuzzedReader("png", _one_file("image", _image), 14),
    "mask-png": FuzzedReader("png", _one_file("mask.png", _mask_png), 6),
    "coco": FuzzedReader("json", _masks("coco", "m.json"), 5),
    "amg": FuzzedReader("json", _masks("amg", "1.json"), 5),
    "semires": FuzzedReader("json", _masks("semires", "ref-0.json"), 5),
    "npz": FuzzedReader("zip", _masks("npz", "1.npz"), 5),
    "sam-checkpoint": FuzzedReader("zip", _one_file("sam.pth", _sam), 5),
    "sam-safetensors": FuzzedReader("safetensors", _one_file("s.safetensors", _small_sam), 1),
    "published": FuzzedReader("zip", _one_file("published.pth", _published), 5),
    "safetensors": FuzzedReader("safetensors", _one_file("w.safetensors", load_weights_file), 4),
    "hub-config": FuzzedReader("json", _one_file("config.json", read_hub_json), 3),
    "vocabulary": FuzzedReader("bytes", _one_file("vocab.txt", _sentences), 2),
    "done-record": FuzzedReader("json", _in_run("candidates.stage/done/00000.json", _done), 4),
    "plan": FuzzedReader("json", _in_run("candidates.stage/plan.json", _plan), 4),
    "manifest": FuzzedReader("json", _in_run("manifest/manifest.json", _manifest), 4),
    "failures": FuzzedReader("jsonl", _in_run("manifest/failures.jsonl", read_failures), 2),
    "column": FuzzedReader("bytes", _in_run("manifest/object_image.npy", _manifest), 3),
    "text-offsets": FuzzedReader(
        "bytes", _in_run("manifest/expression_text.offsets.npy", _manifest), 3
    ),
    "truth": FuzzedReader("bytes", _in_run("manifest/object_rle.data.npy", _mask_of), 3),
    "metrics": FuzzedReader("json", _in_run("round-1/metrics.json", _metrics), 2),
    "zarr-group": FuzzedReader("json", _in_run("candidates.zarr/zarr.json", _candidates), 1),
    "zarr-array": FuzzedReader("json", _in_run("candidates.zarr/cells/zarr.json", _candidates), 2),
    "zarr-column": FuzzedReader(
        "json", _in_run("candidates.zarr/num_candidates/zarr.json", _candidates), 2
    ),
    "zarr-payload": FuzzedReader(
        "json", _in_run("candidates.zarr/membership/zarr.json", _candidates), 1
    ),
    "zarr-chunk": FuzzedReader("bytes", _in_run("candidates.zarr/cells/c/0/0/0", _candidates), 1),
    "zarr-scalars": FuzzedReader("bytes", _in_run("candidates.zarr/num_cells/c/0", _candidates), 1),
    "teacher-array": FuzzedReader(
        "json", _in_run("round-1/teacher.zarr/logit/zarr.json", _teacher), 1
    ),
    "labels-array": FuzzedReader("json", _in_run("round-1/labels.zarr/mask/zarr.json", _labels), 1),
    "labels-chunk": FuzzedReader("bytes", _in_run("round-1/labels.zarr/mask/c/0/0/0", _labels), 1),
    "checkpoint-about": FuzzedReader(
        "json", _in_run("student/step-00000002/checkpoint.json", _checkpoint), 1
    ),
    "checkpoint-state": FuzzedReader(
        "zip", _in_run("student/step-00000002/state.pt", _checkpoint), 1
    ),
}


def seeds_of(name: str) -> dict[str, bytes]:
    """Give the kept files of a reader, by name, in a fixed order."""
    return {path.name: path.read_bytes() for path in sorted((CORPUS / name).iterdir())}


def outcome(read: Read, content: bytes) -> str:
    """Give "accepted" or "refused"; raises what is a crash."""
    try:
        read(content)
    except SemiresError as error:
        _assert_one_line(error)
        return "refused"
    return "accepted"


def fresh(folder: Path) -> Path:
    """Give a folder emptied."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
