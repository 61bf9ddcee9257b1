"""The fault table's rows of damaged files: of all stores and their proofs, found and mended."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.null_runs import Row, hashes

STORES = ("candidates", "round-1/teacher", "round-1/labels")
"""What the three stages write."""

Damage = Callable[[Path, np.random.Generator], None]


def flip_bit(path: Path, rng: np.random.Generator) -> None:
    """Flip one random bit of a file."""
    content = bytearray(path.read_bytes())
    content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(bytes(content))


def cut_short(path: Path, rng: np.random.Generator) -> None:
    """Cut a file at a random place."""
    content = path.read_bytes()
    path.write_bytes(content[: int(rng.integers(len(content)))])


def empty(path: Path, _rng: np.random.Generator) -> None:
    """Leave nothing of a file."""
    path.write_bytes(b"")


def damage_files(
    config: Path,
    whole: Path,
    folder: Path,
    times: int,
    rng: np.random.Generator,
    damage: Damage,
    at_once: int = 10,
) -> Row:
    """Damage files of all stores, a few at once; verify, repair, run again, compare."""
    from pipeline.audit import repair, verify_store

    run_dir = folder / damage.__name__
    shutil.copytree(whole, run_dir)
    expected, missed, lost, done = hashes(whole), 0, 0, 0
    while done < times:
        count = min(at_once, times - done)
        chosen = rng.choice(np.array(stage_files(run_dir)), count, replace=False)
        for path in sorted(chosen, key=lambda path: path.name == "plan.json"):
            store = store_of(path)
            damage(path, rng)
            found = {problem.what for problem in verify_store(store).problems}
            missed += name_of(path, store) not in found
        for name in STORES:
            repair(run_dir / f"{name}.zarr")
        redo(config, run_dir)
        lost += hashes(run_dir) != expected
        done += count
    what = {"flip_bit": "single bit flipped", "cut_short": "file cut", "empty": "file emptied"}
    stores = "candidates, teacher, labels and their proofs"
    return Row(
        f"{what[damage.__name__]} in {stores}", done, f"{done - missed} found", missed + lost
    )


def stage_files(run_dir: Path) -> list[Path]:
    """List every file of the three stores and of their proofs."""
    places = [run_dir / f"{name}.{kind}" for name in STORES for kind in ("zarr", "stage")]
    return sorted(path for place in places for path in place.rglob("*") if path.is_file())


def store_of(path: Path) -> Path:
    """Give the store that a file is of, or is the proof of."""
    place = next(up for up in path.parents if up.suffix in (".zarr", ".stage"))
    return place.with_suffix(".zarr")


def name_of(path: Path, store: Path) -> str:
    """Give what a verification should name when a file is damaged."""
    if path.suffix == ".json" and path.parent.name == "done":
        return f"shard {int(path.stem)}"
    if path.name == "plan.json":
        return "plan"
    parts = path.relative_to(store).parts
    return f"shard {int(parts[2])}" if "c" in parts else "/".join(parts)


def redo(config: Path, run_dir: Path) -> None:
    """Run the three stages again, in this process."""
    from pipeline.candidate_config import CandidatesConfig
    from pipeline.candidate_stage import sam_candidates
    from pipeline.commands import Settings
    from refine.stage import RefineConfig, refine_labels
    from train.config import TeacherConfig
    from train.predict import predict_teacher

    settings = Settings(config, run_dir, ())
    sam_candidates(settings.section("candidates", CandidatesConfig), run_dir)
    predict_teacher(settings.section("teacher", TeacherConfig), run_dir, 1)
    refine_labels(settings.section("refine", RefineConfig), run_dir, 1)
