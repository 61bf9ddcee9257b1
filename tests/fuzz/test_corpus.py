"""No kept file and no fresh damage crashes a reader."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.fuzz import place_of, share_out
from pipeline.columns import open_array
from tests.fuzz.mutations import mutated
from tests.fuzz.readers import CORPUS, READERS, seeds_of

ROOT = Path(__file__).parents[2]
CASES = 1500


def test_kept_files_and_fresh_damage_crash_no_reader(tmp_path):
    """In a process of its own, for it limits its memory."""
    command = [sys.executable, "-m", "benchmarks.fuzz", "--cases", str(CASES), "--seed", "7"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [row.strip("| ").split(" | ") for row in done.stdout.splitlines()[2:] if "|" in row]
    assert [row[0] for row in rows] == [*READERS, "all"]
    for name, cases, accepted, _refused, crashed, *_ in rows:
        assert int(crashed) == 0
        assert int(accepted) > 0, f"{name}: not one file is accepted, so that nothing is tried"
        assert (
            name == "all" or int(cases) >= len(seeds_of(name)) + share_out(CASES, [*READERS])[name]
        )
    assert int(rows[-1][1]) >= CASES


def test_every_reader_has_files_to_begin_with_and_all_are_small():
    assert {path.name for path in CORPUS.iterdir()} == set(READERS)
    sizes = [path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()]
    assert sum(sizes) < 300_000


def test_the_same_seed_does_the_same_damage():
    for name, reader in READERS.items():
        files = list(seeds_of(name).values())
        first, second = (
            [mutated(file, files, reader.kind, random.Random(5)) for file in files] for _ in "ab"
        )
        assert first == second
        changed = [mutated(files[0], files, reader.kind, random.Random(n)) for n in range(20)]
        assert len(set(changed)) > 10, name


def test_an_error_is_named_by_the_function_that_it_passed():

    try:
        open_array(CORPUS / "none.npy")
    except FileNotFoundError as error:
        assert place_of(error) == "FileNotFoundError pipeline/columns.py:open_array"  # noqa: PT017
    assert re.fullmatch(r"\w+ \?", place_of(ValueError("x")))
