"""A link inside a store: nothing is written, and nothing deleted, through it, by any command."""

import os
import shutil

import pytest
from click.testing import CliRunner

from pipeline.cli import inspect_shards, prepare_data, sam_candidates
from pipeline.errors import StoreError
from pipeline.json_files import atomic_write
from pipeline.places import delete, remove_tree
from pipeline.run_contents import stores_below
from pipeline.store_links import refuse_links, refuse_links_above

JOB = """\
version: 1
data: {reader: scenes, scenes: {train: 4, val: 1}, labelled: {ratio: 0.5}}
candidates: {model: region_merging, canvas: 64, shard_size: 2, max_candidates: 10}
"""
LINKS = {
    "array folder": "candidates.zarr/area",
    "chunk folder": "candidates.zarr/area/c",
    "shard folder": "candidates.zarr/cells/c/0",
    "folder in a shard": "candidates.zarr/cells/c/0/0",
    "chunk file": "candidates.zarr/image/c/0",
    "proofs": "candidates.stage/done",
    "attempts": "candidates.stage/attempts",
    "lock of a shard": "candidates.stage/attempts/00001.lock",
    "records": "candidates.stage",
}
REFUSED, DONE, SOME_FAILED = 1, 0, 3
OF_SHARDS = ("shard folder", "folder in a shard", "chunk file")
"""Links that a shard which is made anew takes the place of."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with candidates, of which one image failed; tests take copies."""
    base = tmp_path_factory.mktemp("links")
    (base / "stages.yaml").write_text(JOB)
    options = ["--config", str(base / "stages.yaml"), "--run-dir", str(base / "run")]
    assert CliRunner().invoke(prepare_data, options).exit_code == 0
    images = sorted((base / "run" / "scenes" / "images").rglob("train*"))
    os.truncate(images[0], 100)
    ended = CliRunner().invoke(sam_candidates, options)
    assert ended.exit_code == SOME_FAILED, ended.output
    return base


@pytest.fixture
def run_dir(finished, tmp_path):
    """A copy of it in which a shard is to be made anew."""
    found = shutil.copytree(finished / "run", tmp_path / "run")
    (found / "candidates.stage" / "attempts").mkdir(exist_ok=True)
    (found / "candidates.stage" / "attempts" / "00001.lock").touch()  # of a worker that died
    (found / "candidates.zarr" / "num_cells" / "c" / "1").unlink()
    return found


def lay(run_dir, link):
    """Put a link in the place of a folder or file; what it leads to has the same names in it."""
    precious = run_dir.parent / "precious"
    place = run_dir / link
    if place.is_file():
        precious.mkdir()
        (precious / place.name).write_bytes(b"precious")
        place.unlink()
        place.symlink_to(precious / place.name)
    else:
        shutil.copytree(place, precious)
        for path in precious.rglob("*"):
            if path.is_file() and path.name != "plan.json":  # which says that it is this store's
                path.write_bytes(b"precious " + path.name.encode())
        remove_tree(place)
        place.symlink_to(precious)
    for name in ("photo.jpg", "0.x.partial", "00000.json", "00001.lock", "preparing"):
        (precious / name).write_bytes(b"precious " + name.encode())
    return precious


def files_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def command(finished, run_dir, name):
    """Run one of the commands that write into a store, or delete from it."""
    options = ["--config", str(finished / "stages.yaml"), "--run-dir", str(run_dir)]
    if name.startswith("sam-candidates"):
        return CliRunner().invoke(sam_candidates, [*options, *name.split()[1:]])
    return CliRunner().invoke(inspect_shards, [name, str(run_dir)])


def refusal(ended):
    """Give the one line with which a command was refused."""
    assert ended.exit_code == REFUSED, ended.output
    assert isinstance(ended.exception, SystemExit)
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    return line


LET_BE = {
    "repair": ("chunk file", "lock of a shard"),
    "retry-failed": ("chunk file", "lock of a shard"),
}
"""Links that are not in the way of what a command deletes, or are what it deletes."""
CASES = (
    [("sam-candidates", link, SOME_FAILED if link in OF_SHARDS else REFUSED) for link in LINKS]
    + [("sam-candidates --force", link, SOME_FAILED) for link in LINKS]
    + [
        ("sam-candidates --shard-index 0 --num-shards 1", link, REFUSED)
        for link in ("chunk folder", "proofs", "attempts", "records")
    ]
    + [(name, link, DONE if link in LET_BE[name] else REFUSED) for name in LET_BE for link in LINKS]
)


@pytest.mark.parametrize(("name", "link", "expected"), CASES)
def test_what_a_link_leads_to_stays_as_it_is(finished, run_dir, name, link, expected):
    precious = lay(run_dir, LINKS[link])
    before, proofs = files_of(precious), files_of(run_dir / "candidates.stage" / "done")
    assert len(before) >= 5
    ended = command(finished, run_dir, name)
    assert files_of(precious) == before
    if expected == REFUSED and link not in OF_SHARDS:  # these are met one by one
        assert files_of(run_dir / "candidates.stage" / "done") == proofs
    assert ended.exit_code == expected, ended.output
    if expected == REFUSED:
        assert "expected no link inside, found '" in refusal(ended)
        assert f"which leads to '{precious}" in refusal(ended)
    elif name.startswith("sam-candidates"):
        assert not any(p.is_symlink() for p in run_dir.glob("candidates.*/**/*"))
        assert not list(run_dir.glob("*.replaced"))


@pytest.mark.parametrize("link", ["array folder", "chunk folder", "proofs", "attempts"])
def test_without_the_link_its_shards_are_made_anew_as_the_line_says(finished, run_dir, link):
    precious = lay(run_dir, LINKS[link])
    assert "delete the link" in refusal(command(finished, run_dir, "sam-candidates"))
    (run_dir / LINKS[link]).unlink()
    assert command(finished, run_dir, "sam-candidates").exit_code == SOME_FAILED
    chunks = {k: v for k, v in files_of(run_dir).items() if "c" in k.parts}
    assert chunks == {k: v for k, v in files_of(finished / "run").items() if "c" in k.parts}
    assert precious.is_dir()


def test_whole_shards_are_read_through_links(finished, run_dir):
    """Where nothing is to be written nothing is refused: git-annex and DVC leave such."""
    (run_dir / "candidates.zarr" / "num_cells" / "c" / "1").write_bytes(
        (finished / "run" / "candidates.zarr" / "num_cells" / "c" / "1").read_bytes()
    )
    for name in (LINKS["chunk folder"], LINKS["chunk file"]):
        place = run_dir / name
        place.rename(run_dir.parent / place.name)
        place.symlink_to(run_dir.parent / place.name)
    assert command(finished, run_dir, "verify").exit_code == DONE
    assert command(finished, run_dir, "sam-candidates").exit_code == SOME_FAILED
    assert (run_dir / LINKS["chunk folder"]).is_symlink()


@pytest.mark.parametrize("moved", [["candidates.zarr"], ["candidates.zarr", "candidates.stage"]])
def test_a_store_may_lie_on_another_disk_with_its_records_or_without(finished, run_dir, moved):
    disk = run_dir.parent / "disk"
    disk.mkdir()
    for name in moved:
        (run_dir / name).rename(disk / name)
        (run_dir / name).symlink_to(disk / name)
    assert command(finished, run_dir, "sam-candidates").exit_code == SOME_FAILED
    assert (disk / "candidates.zarr" / "num_cells" / "c" / "1").is_file()
    assert command(finished, run_dir, "retry-failed").exit_code == DONE
    assert command(finished, run_dir, "sam-candidates").exit_code == SOME_FAILED
    assert (run_dir / "candidates.zarr").is_symlink()
    there = files_of(disk)
    for _ in range(2):  # what the first put aside must not be in the way of the second
        assert command(finished, run_dir, "sam-candidates --force").exit_code == SOME_FAILED
        assert stores_below(run_dir) == [run_dir / "candidates.zarr"]
        assert not (run_dir / "candidates.zarr").is_symlink()
        assert not list(run_dir.glob("*.replaced"))
    assert files_of(disk) == there


def test_a_run_directory_may_be_a_link(finished, run_dir):
    (run_dir.parent / "by-link").symlink_to(run_dir)
    ended = command(finished, run_dir.parent / "by-link", "sam-candidates")
    assert ended.exit_code == SOME_FAILED
    assert command(finished, run_dir, "verify").exit_code == DONE


def test_a_link_is_deleted_itself(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_bytes(b"1")
    for target in ("kept", "kept/file", "nothing"):
        for remove in (remove_tree, delete):
            (tmp_path / "link").symlink_to(tmp_path / target)
            remove(tmp_path / "link")
            assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "kept" / "file").read_bytes() == b"1"


def test_nothing_is_deleted_below_a_link_in_a_store_only(tmp_path):
    (tmp_path / "kept").mkdir()
    for name in ("run", "a.zarr"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "link").symlink_to(tmp_path / "kept")
        (tmp_path / "kept" / "file").write_bytes(b"1")
        if name == "run":
            delete(tmp_path / name / "link" / "file")
            assert not (tmp_path / "kept" / "file").exists()
        else:
            with pytest.raises(StoreError, match=r"a\.zarr/link', which leads to"):
                delete(tmp_path / name / "link" / "file")
            assert (tmp_path / "kept" / "file").exists()


def test_records_may_be_a_link_to_those_beside_the_store_and_no_others(tmp_path):
    (tmp_path / "disk" / "a.zarr").mkdir(parents=True)
    (tmp_path / "disk" / "a.stage").mkdir()
    (tmp_path / "b.stage").mkdir()
    (tmp_path / "run").mkdir()
    store, records = tmp_path / "run" / "a.zarr", tmp_path / "run" / "a.stage"
    store.symlink_to(tmp_path / "disk" / "a.zarr")
    records.symlink_to(tmp_path / "disk" / "a.stage")
    refuse_links(store)
    refuse_links_above(records / "done" / "00000.json")
    records.unlink()
    records.symlink_to(tmp_path / "b.stage")
    for refuse, what in ((refuse_links, store), (refuse_links_above, records / "plan.json")):
        with pytest.raises(StoreError, match=r"a\.stage', which leads to"):
            refuse(what)


def test_a_lock_that_is_a_link_is_refused_and_what_it_leads_to_stays(finished, run_dir, tmp_path):
    precious = tmp_path / "precious.txt"
    precious.write_text("not a lock")
    (run_dir / ".lock").unlink(missing_ok=True)
    (run_dir / ".lock").symlink_to(precious)
    options = ["--config", str(finished / "stages.yaml"), "--run-dir", str(run_dir)]
    ended = CliRunner().invoke(sam_candidates, options)
    assert ended.exit_code == REFUSED
    assert f"{run_dir / '.lock'}: expected a lock file, found a link" in ended.stderr
    assert precious.read_text() == "not a lock"


def test_a_half_written_file_that_is_a_link_is_replaced(tmp_path):
    precious = tmp_path / "precious.txt"
    precious.write_text("kept")
    (tmp_path / f".plan.json.{os.getpid()}.partial").symlink_to(precious)
    atomic_write(tmp_path / "plan.json", b"{}")
    assert precious.read_text() == "kept"
    assert (tmp_path / "plan.json").read_bytes() == b"{}"
    assert not (tmp_path / "plan.json").is_symlink()
