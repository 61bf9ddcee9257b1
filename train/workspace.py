"""Shell: where a training works: in its folder or, if that is in an object store, on this machine.

A log grows line by line and a checkpoint is renamed into place: an object store can do neither.
There the folder is copied to this machine when a training begins or goes on, and sent back whenever
a checkpoint is complete: new files first, then the marks that make them count, then what is old is
deleted. A training that is killed goes on from the newest checkpoint that was sent, anywhere.
"""

import hashlib
import shutil
from pathlib import Path

from upath import UPath

from pipeline.errors import StoreError
from pipeline.local_copies import cache_folder, download, files_below, upload
from pipeline.places import Place, delete, is_local, lengths_below, reaching, remove_tree
from train.checkpoint import verify_checkpoint

PLAN, DESCRIPTION, DONE = "plan.json", "student.json", "done"
"""What a training is to be; what says that it is finished; what makes a checkpoint count."""


def workspace(place: Place) -> Path:
    """Give the folder in which a training works, the same in all processes of this machine."""
    if is_local(place):
        return place
    return cache_folder() / "work" / hashlib.sha256(str(place).encode()).hexdigest()[:16]


def fetch(place: Place) -> None:
    """Make the workspace a copy of a training's folder; does nothing on a disk.

    Checkpoints that were not sent to the end, or are damaged, are deleted in both.
    """
    if is_local(place):
        return
    folder = workspace(place)
    remove_tree(folder)
    folder.mkdir(parents=True)
    with reaching(place):
        download(place, sorted(lengths_below(place)), folder)
        _drop_unproven(folder, place)


def publish(place: Place) -> None:
    """Make a training's folder a copy of its workspace; does nothing on a disk.

    Killed at any moment it leaves a folder that can be gone on with.
    """
    if is_local(place):
        return
    with reaching(place):
        _publish(workspace(place), place)


def drop(place: Place) -> None:
    """Delete the workspace of a training in an object store; does nothing on a disk."""
    if not is_local(place):
        shutil.rmtree(workspace(place), ignore_errors=True)


def _drop_unproven(folder: Path, place: UPath) -> None:
    """Free the names of checkpoints that cannot be gone on with, for those made in their stead."""
    for checkpoint in folder.glob("checkpoints/*"):
        try:
            verify_checkpoint(checkpoint)
        except StoreError:
            for name in sorted(files_below(checkpoint), key=lambda name: not _is_mark(name)):
                delete(place / "checkpoints" / checkpoint.name / name)
            shutil.rmtree(checkpoint)


def _publish(folder: Path, place: UPath) -> None:
    there, names = lengths_below(place), files_below(folder)
    marks = [name for name in names if _is_mark(name)]
    # What is there of a checkpoint is proven, and never changes; all else is small or new.
    kept = {name for name in there if name.startswith("checkpoints/") and name in names}
    upload(folder, place, [name for name in names if name not in kept and name not in marks])
    upload(folder, place, [name for name in marks if name not in kept])
    gone = sorted(there.keys() - set(names), key=lambda name: not _is_mark(name))
    for name in gone:  # marks first, so that half of a checkpoint is never believed
        delete(place / name)


def _is_mark(name: str) -> bool:
    return name == DESCRIPTION or name.rsplit("/", 1)[-1] == DONE
