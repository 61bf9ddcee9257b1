"""Shell: a data set in, `manifest/` out."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.assemble import Leaks, assemble
from pipeline.collect import Collection, collect
from pipeline.columns import file_sha256
from pipeline.config import differences, to_plain
from pipeline.data_config import DataConfig as DataConfig
from pipeline.errors import ConfigError, ItemError, ManifestError
from pipeline.failure_groups import links_item
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
from pipeline.prepare_progress import progress_bar as progress_bar
from pipeline.prepare_summary import FAILURES as FAILURES
from pipeline.prepare_summary import MANIFEST, Summary, facts_of, failure_lines, summary_of
from pipeline.prepare_summary import read_failures as read_failures
from pipeline.readers import READERS
from pipeline.readers.base import Progress
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
    failures.jsonl and the run goes on. Other `links_into` make the manifest anew, which has to come
    out the same: they say what may be read, not what is in it.

    Args:
        config: Which data set, and how.
        run_dir: `manifest/` is written here, and `scenes/` if the reader generates them.
        limit: Images to keep of every split, for trials, at least 1; None keeps all.
        force: Replace a manifest of another config, whose images have changed since, or from which
            some were left out (they may have been mended), once the new one is ready to be
            written; until then it and generated scenes stay as they are.
        workers: Processes that generate scenes; the result does not depend on it.
        progress: Called after every scene that is generated and every object that is read, with
            "scenes" or "objects" and the number so far; see `progress_bar`.

    Returns:
        Counts of what was written, or of what was there already.

    Raises:
        ManifestError: If an input is missing, nothing in it can be used, truth leaks between
            splits, or the manifest there is of another config (the differences are named) or
            would be another by other `links_into`, and `force` is not given.
        ConfigError: If the labelled ratio gives no image.
    """
    if limit is not None and limit < 1:
        raise ManifestError(f"expected a limit of at least 1 image, found {limit}")
    folder, same_as = run_dir / MANIFEST, None
    request = {"config": deciding(config), "inputs": input_hashes(config), "limit": limit}
    # An object store has no rename: a manifest that was not sent to the end lacks its description.
    if (folder if is_local(folder) else folder / DESCRIPTION).exists():
        try:
            refuse_other(folder, request)
            summary, manifest = summary_of(folder, reused=True), load_manifest(folder, verify=True)
            links_differ = set(manifest.links_into) != set(_links_into(config))
            is_current = not force or (not summary.failed and _images_are_as_recorded(manifest))
            if not links_differ and is_current:
                return summary
            same_as = None if force else manifest
        except ManifestError:
            if not force:
                raise
    _write(config, run_dir, request, workers, progress, same_as)
    return summary_of(folder, reused=False)


def deciding(config: DataConfig) -> dict[str, Any]:
    """Give the settings that decide a manifest, as plain values."""
    plain: dict[str, Any] = to_plain(config)
    del plain["links_into"]
    return plain


def _links_into(config: DataConfig) -> tuple[Path, ...]:
    """Give the folders that links may lead into, by absolute paths: workers start elsewhere."""
    return tuple(Path(os.path.abspath(folder)) for folder in config.links_into)  # noqa: PTH100


def _write(
    config: DataConfig,
    run_dir: Place,
    request: Mapping[str, Any],
    workers: int,
    progress: Progress | None,
    same_as: Manifest | None,
) -> None:
    """Read the data set and write its manifest, in place of one that may be there.

    Where that is `same_as`, the new one has to have its rows.
    """
    refuse_missing(config.links_into)
    folder, limit = run_dir / MANIFEST, request["limit"]
    scenes = config.scenes if limit is None else _at_most(config.scenes, limit)
    config = dataclasses.replace(config, scenes=scenes, links_into=_links_into(config))
    with _work_folder(run_dir, request) as work:
        source = READERS[config.reader](config, work, workers, progress)
        collection = collect(source, config, limit=limit, progress=progress)
        manifest, leaks = _assembled(collection, source.image_root, config, limit is not None)
        failures = collection.failures
        del collection  # what the manifest does not need of it takes memory
        if same_as is not None and same_as.fingerprint != manifest.fingerprint:
            raise ManifestError(
                f"{folder} was made with another data.links_into, with which it has "
                f"{same_as.num_images} images and {same_as.num_objects} objects, now "
                f"{manifest.num_images} and {manifest.num_objects}; choose a new --run-dir, or add "
                "--force to replace it"
            )
        description = {**request} | facts_of(manifest, failures, leaks)
        extra = {FAILURES: failure_lines(failures)}
        moved = work != run_dir and config.reader == "scenes"
        if moved:
            manifest = dataclasses.replace(manifest, image_root=run_dir / SCENES)
        with making_manifest(folder, manifest, description=description, extra=extra) as making:
            if moved:
                _replace_scenes(run_dir, work)
            place_manifest(making, folder)


def _assembled(
    collection: Collection, image_root: Path, config: DataConfig, trial: bool
) -> tuple[Manifest, Leaks]:
    """Put what was read into a manifest; what refuses it tells of refused links too.

    Raises:
        ManifestError: As `assemble`, or if nothing can be used.
        ConfigError: As `assemble`.
    """
    _refuse_empty(collection, image_root)
    try:
        manifest, leaks = assemble(
            collection.images,
            collection.objects,
            image_root,
            config.labelled,
            _wanted(config),
            drop_leaking=config.drop_leaking,
            trial=trial,
        )
    except (ManifestError, ConfigError) as error:
        links = links_item(collection.failures)
        if links is None:
            raise
        raise type(error)(f"{error}; {links.item}: {links.reason}") from error
    return dataclasses.replace(manifest, links_into=config.links_into), leaks


def input_hashes(config: DataConfig) -> dict[str, str]:
    """Give the sha256 of every file that the config names, by its key.

    Raises:
        ManifestError: If one is missing, or cannot be read.
    """
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


def refuse_missing(folders: Sequence[Path]) -> None:
    """Refuse folders for links that are not there.

    Raises:
        ManifestError: Names the first.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ManifestError(
                f"expected a folder for data.links_into at {folder}, found none; check the path"
            )


def refuse_other(folder: Place, request: Mapping[str, Any]) -> None:
    """Refuse a manifest that was made of other settings or inputs.

    Raises:
        ManifestError: Names the differences, or that the description is damaged.
    """
    found = read_description(folder)
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
    if len(collection.objects):
        return
    failed = [failure for failure in collection.failures if failure.severity == "failed"]
    links, why = links_item(failed), ""
    if links is not None:
        why = f"; {links.item}: {links.reason}"
    elif failed:
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
