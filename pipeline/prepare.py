"""Shell: a data set in, `manifest/` out."""

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.assemble import assemble
from pipeline.collect import Collection, collect
from pipeline.columns import file_sha256
from pipeline.config import differences, to_plain
from pipeline.data_config import DataConfig as DataConfig
from pipeline.errors import ItemError, ManifestError
from pipeline.local_copies import scratch, upload
from pipeline.manifest import (
    DESCRIPTION,
    Manifest,
    load_manifest,
    making_manifest,
    place_manifest,
    read_description,
)
from pipeline.places import Place, is_local, is_on_the_way, remove_tree
from pipeline.prepare_summary import FAILURES as FAILURES
from pipeline.prepare_summary import MANIFEST, Summary, facts_of, summary_of
from pipeline.prepare_summary import read_failures as read_failures
from pipeline.readers import READERS
from pipeline.readers.base import Failure, Progress
from pipeline.readers.ids import read_image_ids
from pipeline.scenes.write import FORMAT_VERSION

SCENES = "scenes"


def prepare_data(
    config: DataConfig,
    run_dir: Place,
    *,
    limit: int | None = None,
    force: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> Summary:
    """Read a data set, check it, and write its manifest.

    The same config and inputs give the same bytes. One bad image, object or expression goes to
    failures.jsonl and the run goes on.

    Args:
        config: Which data set, and how.
        run_dir: `manifest/` is written here, and `scenes/` if the reader generates them.
        limit: Images to keep of every split, for trials, at least 1; None keeps all.
        force: Replace a manifest of another config, or whose images have changed since, once the
            new one is ready to be written; until then it and generated scenes stay as they are.
        workers: Processes that generate scenes; the result does not depend on it.
        progress: Called after every scene that is generated and every object that is read, with
            "scenes" or "objects" and the number so far; see `progress_bar`.

    Returns:
        Counts of what was written, or of what was there already.

    Raises:
        ManifestError: If an input is missing, nothing in it can be used, truth leaks between
            splits, or the manifest there is of another config (the differences are named) and
            `force` is not given.
        ConfigError: If the labelled ratio gives no image.
    """
    if limit is not None and limit < 1:
        raise ManifestError(f"expected a limit of at least 1 image, found {limit}")
    folder = run_dir / MANIFEST
    request = {"config": to_plain(config), "inputs": _input_hashes(config), "limit": limit}
    # An object store has no rename: a manifest that was not sent to the end lacks its description.
    if (folder if is_local(folder) else folder / DESCRIPTION).exists():
        try:
            _refuse_other(folder, request)
            summary = summary_of(folder, reused=True)
            if not force or _images_are_as_recorded(load_manifest(folder)):
                return summary
        except ManifestError:
            if not force:
                raise
    _write(config, run_dir, request, workers, progress)
    return summary_of(folder, reused=False)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show the progress of `prepare_data` on stderr: number and rate, a bar for each kind of item.

    Yields:
        What to pass as `progress`; nothing is shown before its first call.
    """
    bars: dict[str, tqdm[Any]] = {}

    def show(kind: str, number: int) -> None:
        if kind not in bars:
            for earlier in bars.values():
                earlier.close()
            bars[kind] = tqdm(
                desc="prepare-data",
                unit=f" {kind}",
                file=sys.stderr,
                mininterval=0.5,
                dynamic_ncols=True,
            )
        bars[kind].update(number - bars[kind].n)

    try:
        yield show
    finally:
        for bar in bars.values():
            bar.close()


def _write(
    config: DataConfig,
    run_dir: Place,
    request: Mapping[str, Any],
    workers: int,
    progress: Progress | None,
) -> None:
    """Read the data set and write its manifest, in place of one that may be there."""
    folder, limit = run_dir / MANIFEST, request["limit"]
    scenes = config.scenes if limit is None else _at_most(config.scenes, limit)
    config = dataclasses.replace(config, scenes=scenes)
    with _work_folder(run_dir, request) as work:
        source = READERS[config.reader](config, work, workers, progress)
        collection = collect(source, config, limit=limit, progress=progress)
        _refuse_empty(collection, source.image_root)
        manifest, leaks = assemble(
            collection.objects,
            source.image_root,
            config.labelled,
            _wanted(config),
            drop_leaking=config.drop_leaking,
            trial=limit is not None,
        )
        description = {**request} | facts_of(manifest, collection.failures, leaks)
        extra = {FAILURES: _lines(collection.failures)}
        moved = work != run_dir and config.reader == "scenes"
        if moved:
            manifest = dataclasses.replace(manifest, image_root=run_dir / SCENES)
        with making_manifest(folder, manifest, description=description, extra=extra) as making:
            if moved:
                _replace_scenes(run_dir, work)
            place_manifest(making, folder)


def _input_hashes(config: DataConfig) -> dict[str, str]:
    hashes = {}
    for name, path in config.input_files().items():
        if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would be waited for
            raise ManifestError(f"expected the file data.{name} at {path}, found a pipe or device")
        try:
            hashes[name] = file_sha256(path)
        except OSError as error:
            raise ManifestError(
                f"expected the file data.{name} at {path}, found none that can be read "
                f"({error.strerror}); check the path"
            ) from error
    if config.reader == "scenes":  # no file decides what is generated, but its format may change
        hashes["scenes"] = f"format {FORMAT_VERSION}"
    return hashes


def _refuse_other(folder: Place, request: Mapping[str, Any]) -> None:
    try:
        found = read_description(folder)
    except ManifestError as error:
        raise ManifestError(f"{error} (delete {folder} to prepare the data again)") from error
    lines = [
        line for key, value in request.items() for line in differences(found.get(key), value, key)
    ]
    if lines:
        raise ManifestError(
            f"{folder} was made otherwise ({'; '.join(lines)}); choose a new --run-dir, or "
            "add --force to replace it"
        )


def _replace_scenes(run_dir: Place, work: Path) -> None:
    """Put new scenes in the place of the old ones, by renaming or sending; their manifest goes."""
    (run_dir / MANIFEST / DESCRIPTION).unlink(missing_ok=True)  # first: its pictures go
    if not is_local(run_dir):
        remove_tree(run_dir / SCENES)
        upload(work / SCENES, run_dir / SCENES)
        return
    old = run_dir / f"{SCENES}.old"
    remove_tree(old)  # left by a run that was killed
    if (run_dir / SCENES).exists():
        (run_dir / SCENES).rename(old)
    (work / SCENES).rename(run_dir / SCENES)
    remove_tree(old)
    work.rmdir()


def _images_are_as_recorded(manifest: Manifest) -> bool:
    """Hash every image file and tell whether all are those that the manifest was made of."""
    try:
        return all(
            file_sha256(manifest.image_file(row)) == manifest.image_sha256[row]
            for row in range(manifest.num_images)
        )
    except (OSError, ItemError) as error:
        if isinstance(error, OSError) and is_on_the_way(manifest.image_root, error):
            raise
        return False


@contextmanager
def _work_folder(run_dir: Place, request: Mapping[str, Any]) -> Iterator[Path]:
    """Give the folder in which scenes are generated: aside, where others have to stay until then.

    Yields:
        `run_dir`; an empty folder in it if the manifest there is of other scenes; a scratch folder
        if it is in an object store.
    """
    if not is_local(run_dir):
        with scratch() as folder:
            yield folder
        return
    if not _scenes_differ(run_dir, request):
        yield run_dir
        return
    aside = run_dir / f"{SCENES}.making"
    remove_tree(aside)  # left by a run that was killed
    yield aside


def _scenes_differ(run_dir: Path, request: Mapping[str, Any]) -> bool:
    """Tell whether other scenes than those asked for lie in a run directory."""
    try:
        made = _scenes_of(read_description(run_dir / MANIFEST))
    except (ManifestError, KeyError):
        return False  # what lies there is unknown; write_scenes refuses what it did not make
    both = made["reader"] == request["config"]["reader"] == "scenes"
    return both and made != _scenes_of(request)


def _scenes_of(request: Mapping[str, Any]) -> dict[str, Any]:
    """Give what decides the generated scenes."""
    config = {name: request["config"][name] for name in ("reader", "scenes", "scenes_seed")}
    return config | {"limit": request["limit"], "format": request["inputs"].get("scenes")}


def _refuse_empty(collection: Collection, image_root: Path) -> None:
    if collection.objects:
        return
    failed = [failure for failure in collection.failures if failure.severity == "failed"]
    why = ""
    if failed:
        why = f"; the first of {len(failed)} failures: {failed[0].item}: {failed[0].reason}"
    raise ManifestError(
        f"expected at least one usable object with its image under {image_root}, found none{why}"
    )


def _wanted(config: DataConfig) -> tuple[str, ...] | None:
    if config.labelled.file is not None:
        return read_image_ids(config.labelled.file)
    return config.labelled.ids


def _at_most(counts: Mapping[str, int], limit: int) -> dict[str, int]:
    return {split: min(count, limit) for split, count in counts.items()}


def _lines(failures: list[Failure]) -> bytes:
    return "".join(json.dumps(to_plain(failure)) + "\n" for failure in failures).encode()
