"""The fault table's rows of damaged files: of all that `verify` covers, found and mended."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.null_runs import Row

STORES = ("candidates", "round-1/teacher", "round-1/labels")
"""What the three stages write."""
NOT_HASHED = ("log.csv", "validation.csv")
"""Files of a training that `verify` has no hash of."""
SETTINGS = "manifest.json"
"""Has settings beside hashes, counts and fingerprint. `verify` compares these, `prepare-data` the
settings: so it is cut and emptied here, but no bit of it is flipped."""

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
    """Damage files of a run, a few at once; verify, do what is said, compare the whole run."""
    from tests.conftest import file_hashes

    run_dir = folder / damage.__name__
    shutil.copytree(whole, run_dir)
    expected, missed, lost, done = file_hashes(whole), 0, 0, 0
    while done < times:
        count = min(at_once, times - done)
        chosen = choose(run_dir, count, rng, damage)
        for path in sorted(chosen, key=_hides_others):
            place = place_of(path)
            damage(path, rng)
            missed += name_of(path, place) not in found_in(place)
        mend(config, run_dir)
        lost += file_hashes(run_dir) != expected
        done += count
    what = {"flip_bit": "single bit flipped", "cut_short": "file cut", "empty": "file emptied"}
    files = "manifest, candidates, teacher, labels, students and their proofs"
    return Row(f"{what[damage.__name__]} in {files}", done, f"{done - missed} found", missed + lost)


def choose(run_dir: Path, count: int, rng: np.random.Generator, damage: Damage) -> list[Path]:
    """Draw files: a fifth of them of the manifest, a fifth of students, at least one of each."""
    manifest = [path for path in manifest_files(run_dir) if damage is not flip_bit or _flips(path)]
    share = max(1, count // 5)
    parts = [
        (manifest, share),
        (student_files(run_dir), share),
        (stage_files(run_dir), count - 2 * share),
    ]
    return [
        path for files, part in parts for path in rng.choice(np.array(files), part, replace=False)
    ]


def _flips(path: Path) -> bool:
    return path.name != SETTINGS


def _hides_others(path: Path) -> tuple[bool, bool]:
    """Sort files last without which the others of their place cannot be told to be damaged."""
    return path.name == "student.json", path.name in ("plan.json", SETTINGS)


def manifest_files(run_dir: Path) -> list[Path]:
    """List the files of the manifest that are not empty as they should be."""
    return sorted(path for path in (run_dir / "manifest").iterdir() if path.stat().st_size)


def student_files(run_dir: Path) -> list[Path]:
    """List the files of all trainings that `verify` covers."""
    found = run_dir.glob("round-*/student/*")
    return sorted(path for path in found if path.is_file() and path.name not in NOT_HASHED)


def stage_files(run_dir: Path) -> list[Path]:
    """List every file of the three stores and of their proofs."""
    places = [run_dir / f"{name}.{kind}" for name in STORES for kind in ("zarr", "stage")]
    return sorted(path for place in places for path in place.rglob("*") if path.is_file())


def place_of(path: Path) -> Path:
    """Give the manifest, training or store that a file is of, or is the proof of."""
    if path.parent.name in ("manifest", "student"):
        return path.parent
    place = next(up for up in path.parents if up.suffix in (".zarr", ".stage"))
    return place.with_suffix(".zarr")


def found_in(place: Path) -> set[str]:
    """Name what a verification finds damaged in a place."""
    from pipeline import audit

    verify = {"manifest": audit.verify_manifest, "student": audit.verify_student}
    report = verify.get(place.name, audit.verify_store)(place)
    return {problem.what for problem in report.problems}


def name_of(path: Path, place: Path) -> str:
    """Give what a verification should name when a file is damaged."""
    if place.suffix != ".zarr":
        return "manifest" if path.name == SETTINGS else path.name
    if path.suffix == ".json" and path.parent.name == "done":
        return f"shard {int(path.stem)}"
    if path.name == "plan.json":
        return "plan"
    parts = path.relative_to(place).parts
    return f"shard {int(parts[2])}" if "c" in parts else "/".join(parts)


def mend(config: Path, run_dir: Path) -> None:
    """Do what `repair` says: prepare, train and run the stages again, in this process."""
    from pipeline.audit import repair, verify_unsharded
    from pipeline.candidate_config import CandidatesConfig
    from pipeline.candidate_stage import sam_candidates
    from pipeline.commands import Settings
    from pipeline.paths import RunPaths
    from pipeline.prepare import DataConfig, prepare_data
    from refine.stage import RefineConfig, refine_labels
    from train.config import TeacherConfig
    from train.predict import predict_teacher
    from train.presets import train_section
    from train.student import train_student

    settings, paths = Settings(config, run_dir, ()), RunPaths(run_dir)
    for name in STORES:
        repair(run_dir / f"{name}.zarr")
    reports = {report.place: report for report in verify_unsharded(run_dir) if report.damaged}
    if paths.manifest in reports:
        prepare_data(settings.section("data", DataConfig), run_dir, force=True)
    sam_candidates(settings.section("candidates", CandidatesConfig), run_dir)
    for number in range(len(list(run_dir.glob("round-*/student")))):
        if number == 1:
            predict_teacher(settings.section("teacher", TeacherConfig), run_dir, number)
            refine_labels(settings.section("refine", RefineConfig), run_dir, number)
        if (report := reports.get(paths.student(number))) is not None:
            forced = "--force" in report.advice
            replace = "always" if forced else "never"
            train_student(train_section(settings), run_dir, number, replace=replace)
