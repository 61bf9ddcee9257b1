"""Shell: a manifest on the disk or in an object store: a .npy file a column, and manifest.json."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.columns import StringColumn as StringColumn
from pipeline.columns import (
    file_sha256,
    open_array,
    open_strings,
    portable_path,
    resolved_path,
    write_columns,
)
from pipeline.errors import ManifestError, StoreError
from pipeline.found_values import shown
from pipeline.local_copies import files_below, local_copy, scratch, upload
from pipeline.manifest_rows import ARRAYS, FORMAT, STRINGS, Column
from pipeline.manifest_rows import SPLITS as SPLITS
from pipeline.manifest_rows import Manifest as Manifest
from pipeline.manifest_rows import images_fingerprint as images_fingerprint
from pipeline.manifest_rows import manifest_fingerprint as manifest_fingerprint
from pipeline.places import Place, is_local, is_on_the_way, read_bytes, remove_tree
from pipeline.records import atomic_write, sync_folder

DESCRIPTION = "manifest.json"
ANEW = "run 'prepare-data --force', which makes it anew"
"""What mends a damaged manifest."""
_FILE = re.compile(r"\w[\w.-]*")
_PARTS = {"fingerprint": str, "image_root": str, "counts": dict, "files": dict}


def write_manifest(
    folder: Place,
    manifest: Manifest,
    *,
    description: Mapping[str, Any],
    extra: Mapping[str, bytes] | None = None,
) -> None:
    """Write a manifest in one step: under another name first, then renamed or sent.

    The same manifest and description give the same bytes.

    Args:
        folder: Target; must not exist.
        manifest: What to write.
        description: JSON values kept in manifest.json (config, inputs, counts of failures).
        extra: Further files of the folder, name to content.

    Raises:
        ManifestError: If `folder` exists.
    """
    if folder.exists():
        raise ManifestError(f"expected no {folder} yet, found one; choose another run directory")
    with making_manifest(folder, manifest, description=description, extra=extra) as making:
        place_manifest(making, folder)


@contextmanager
def making_manifest(
    folder: Place,
    manifest: Manifest,
    *,
    description: Mapping[str, Any],
    extra: Mapping[str, bytes] | None = None,
) -> Iterator[Path]:
    """Write a manifest that belongs at `folder` elsewhere; one that is there is not touched.

    Takes what `write_manifest` takes.

    Yields:
        The folder written, for `place_manifest`: beside `folder`, or a scratch folder where that
        is in an object store.
    """
    with scratch() as aside:
        making = folder.with_name(folder.name + ".making") if is_local(folder) else aside / "made"
        remove_tree(making)  # left by a run that was killed
        making.mkdir(parents=True)
        hashes = write_columns(making, _columns(manifest))
        for name, content in (extra or {}).items():
            atomic_write(making / name, content)
            hashes[name] = file_sha256(making / name)
        document = {
            **description,
            "format": FORMAT,
            "fingerprint": manifest.fingerprint,
            "image_root": portable_path(manifest.image_root, folder),
            "counts": _counts(manifest),
            "files": hashes,
        }
        if manifest.links_into:
            links = [portable_path(link, folder) for link in manifest.links_into]
            document["links_into"] = links
        text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        atomic_write(making / DESCRIPTION, text.encode())
        yield making


def place_manifest(making: Path, folder: Place) -> None:
    """Put what `making_manifest` wrote in its place; a manifest that is there is deleted."""
    (folder / DESCRIPTION).unlink(missing_ok=True)  # first, for without it nothing is proven
    remove_tree(folder)
    if not is_local(folder):
        upload(making, folder, [name for name in files_below(making) if name != DESCRIPTION])
        upload(making, folder, [DESCRIPTION])
        return
    making.rename(folder)
    sync_folder(folder.parent)


def load_manifest(folder: Place, *, verify: bool = False) -> Manifest:
    """Open a manifest; columns are memory-mapped, so that this is quick at any size.

    Those of an object store are copied once to this machine.

    Args:
        folder: What `write_manifest` wrote.
        verify: Also compare every file with its recorded sha256, and the fingerprint with the
            columns: a second for a million images. Whoever decides what a stage is made of asks
            for it, once; tasks and workers do not.

    Raises:
        ManifestError: If it is missing, of another format, or its parts do not fit together.
    """
    document = read_description(folder)
    hashes: dict[str, str] = document["files"]
    if verify:
        _refuse_damaged(folder, hashes)
    try:
        manifest = _open(folder, document, lambda name: local_copy(folder / name, hashes[name]))
    except (ManifestError, StoreError) as error:
        raise ManifestError(f"{folder}: {error}; {ANEW}") from error
    except (OSError, ValueError, EOFError, KeyError) as error:
        if isinstance(error, OSError) and is_on_the_way(folder, error):
            raise
        raise ManifestError(
            f"{folder}: a column is missing or damaged ({error}); {ANEW}"
        ) from error
    if _counts(manifest) != document["counts"]:
        raise ManifestError(
            f"{folder}: expected {shown(document['counts'])} rows, found {_counts(manifest)}; "
            f"{ANEW}"
        )
    if verify:
        refuse_other_columns(folder, manifest)
    return manifest


def refuse_other_columns(folder: Place, manifest: Manifest) -> None:
    """Refuse a manifest whose fingerprint is not that of its columns.

    Raises:
        ManifestError: Names the description, in which the fingerprint is.
    """
    if manifest_fingerprint(_columns(manifest)) != manifest.fingerprint:
        raise ManifestError(
            f"{folder / DESCRIPTION} is damaged (expected the fingerprint of the columns, found "
            f"another); {ANEW}"
        )


def _refuse_damaged(folder: Place, hashes: Mapping[str, str]) -> None:
    """Refuse a manifest of which a file is not the one that was written.

    Raises:
        ManifestError: Names the first.
    """
    for name, recorded in hashes.items():
        if _sha256_or_none(folder / name) != recorded:
            raise ManifestError(
                f"{folder / name} is missing or damaged (expected the sha256 that {DESCRIPTION} "
                f"has of it, found another); {ANEW}"
            )


def _sha256_or_none(path: Place) -> str | None:
    try:
        return file_sha256(path)
    except OSError as error:
        if is_on_the_way(path, error):
            raise
        return None


def _open(folder: Place, document: Mapping[str, Any], file_of: Callable[[str], Path]) -> Manifest:
    columns: dict[str, Any] = {
        **{name: open_array(file_of(f"{name}.npy")) for name in ARRAYS},
        **{name: open_strings(file_of, name) for name in STRINGS},
    }
    return Manifest(
        image_root=resolved_path(document["image_root"], folder),
        links_into=_links_into(document, folder),
        fingerprint=document["fingerprint"],
        **columns,
    )


def _links_into(document: Mapping[str, Any], folder: Place) -> tuple[Path, ...]:
    found = document.get("links_into", [])
    if not isinstance(found, list) or not all(isinstance(t, str) and "\0" not in t for t in found):
        raise ManifestError(f"expected links_into as a list of folders, found {shown(found)}")
    places = [resolved_path(text, folder) for text in found]
    return tuple(place for place in places if is_local(place))


def read_description(folder: Place) -> dict[str, Any]:
    """Read manifest.json of a manifest folder.

    Raises:
        ManifestError: If it is missing, not JSON, or of another format.
    """
    path = folder / DESCRIPTION
    try:
        document = json.loads(read_bytes(path))
    except FileNotFoundError as error:
        # A local folder appears whole; what is sent to an object store may be under way.
        lost = is_local(folder) and folder.exists()
        advice = ANEW if lost else "run prepare-data first"
        raise ManifestError(f"expected {path}, found none; {advice}") from error
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, OSError) and is_on_the_way(path, error):
            raise
        raise ManifestError(f"{path} is damaged ({error}); {ANEW}") from error
    found = document.get("format") if isinstance(document, dict) else None
    if found != FORMAT:
        raise ManifestError(f"expected format {FORMAT!r} in {path}, found {shown(found)}; {ANEW}")
    if missing := {"fingerprint", "image_root", "counts", "files"} - set(document):
        raise ManifestError(f"{path} lacks {sorted(missing)}; {ANEW}")
    for key, kind in _PARTS.items():
        if not isinstance(document.get(key), kind):
            raise ManifestError(
                f"expected {key} as {kind.__name__} in {path}, found {shown(document.get(key))}; "
                f"{ANEW}"
            )
    if odd := [name for name in document["files"] if not _FILE.fullmatch(name)]:  # all are hashed
        raise ManifestError(f"expected names of files in {path}, found {shown(odd[0])}; {ANEW}")
    return dict(document)


def _columns(manifest: Manifest) -> dict[str, Column]:
    return {name: getattr(manifest, name) for name in (*ARRAYS, *STRINGS)}


def _counts(manifest: Manifest) -> dict[str, int]:
    return {
        "images": manifest.num_images,
        "objects": manifest.num_objects,
        "expressions": manifest.num_expressions,
    }
