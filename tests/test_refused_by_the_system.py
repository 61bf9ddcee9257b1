"""A full disk, a lack of rights, a disk that fails: one line each, and nothing taken for damage."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from benchmarks import null_runs, process_faults
from pipeline.commands import verb
from pipeline.disk_errors import line_of, system_error
from pipeline.errors import StoreError
from pipeline.places import is_on_the_way, place, reaching
from pipeline.verb_options import PlaceType


def run_null(run_dir, *before):
    """Run the null stage; give its end and what it said on stderr that is no progress bar."""
    command = [*before, *null_runs.NULL, "--run-dir", str(run_dir)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def the_line_of(ended):
    """Give the one line with which a command was refused."""
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, ended.stderr
    return lines[0]


def without_rights():
    """Give what runs a command without the superuser's right to every file."""
    if os.geteuid():
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("the superuser may read everything, and there is no setpriv")
    return ("setpriv", "--inh-caps=-all", "--bounding-set=-dac_override,-dac_read_search")


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """The run directory of a null stage that is done."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert run_null(run_dir).returncode == 0
    return run_dir


@pytest.fixture
def null_run(whole_run, tmp_path):
    """A copy of it, to be spoilt."""
    run_dir = shutil.copytree(whole_run, tmp_path / "run")
    yield run_dir
    for folder, _, _ in os.walk(run_dir):
        Path(folder).chmod(0o700)


def test_a_disk_that_is_full_before_the_start_is_one_line(tmp_path):
    if not process_faults.mount_small(tmp_path, 64):
        pytest.skip("no right to mount a file system")
    try:
        with pytest.raises(OSError, match="No space"), (tmp_path / "rest").open("wb") as rest:
            for _ in range(128):
                rest.write(bytes(1024))
                rest.flush()
        line = the_line_of(run_null(tmp_path))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert line.startswith(f"error: {tmp_path}")
    assert "No space left on device" in line
    assert "free some space" in line


def test_where_no_file_may_have_a_byte_it_is_one_line(tmp_path):
    """As a quota does; needs no rights."""
    line = the_line_of(run_null(tmp_path, "bash", "-c", 'ulimit -f 0; exec "$@"', "bash"))
    assert line.startswith(f"error: {tmp_path}")
    assert "free some space" in line


def test_weights_that_the_disk_does_not_take_name_the_reason(tmp_path):
    """The library that writes them has an error of its own."""
    write = (
        "import sys, torch; from safetensors.torch import save_file\n"
        "from pipeline.disk_errors import system_error\n"
        "try: save_file({'w': torch.zeros(4096)}, sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__, system_error(error).errno)\n"
    )
    command = ["bash", "-c", 'ulimit -f 4; exec "$@"', "bash", sys.executable, "-c", write]
    ended = subprocess.run(
        [*command, str(tmp_path / "w")], capture_output=True, text=True, check=False
    )
    assert ended.stdout == f"SafetensorError {errno.EFBIG}\n", ended.stderr


@pytest.mark.parametrize("name", [".", "null.stage/done"])
def test_a_run_without_rights_is_one_line_and_no_damage(null_run, name):
    (null_run / name).chmod(0o000)
    ended = run_null(null_run, *without_rights())
    line = the_line_of(ended)
    assert line.startswith(f"error: {null_run}")
    assert "Permission denied" in line
    assert "damaged" not in line


def test_status_needs_no_right_to_write(null_run):
    (null_run / ".lock").chmod(0o400)
    null_run.chmod(0o500)
    status = [sys.executable, "-c", "from pipeline.cli import inspect_shards; inspect_shards()"]
    ended = subprocess.run(
        [*without_rights(), *status, "status", str(null_run)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr


def test_a_run_directory_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in the_line_of(run_null(tmp_path / "file"))


@pytest.mark.parametrize("name", [".lock", "null.stage/done/00003.json"])
def test_a_folder_where_a_file_should_be_is_one_line(null_run, name):
    (null_run / name).unlink()
    (null_run / name / "in").mkdir(parents=True)
    line = the_line_of(run_null(null_run))
    assert str(null_run / name) in line
    assert "Is a directory" in line


def test_an_empty_run_directory_is_refused():
    with pytest.raises(ValueError, match="expected a path or a URL, found an empty text"):
        place("")


@click.command()
@click.argument("number", type=int)
@click.option("--run-dir", type=PlaceType())
@verb
def fail(*, number, run_dir):
    """Fail as the operating system does."""
    raise OSError(number, os.strerror(number), None if number == errno.ENOSPC else "/data/x")


@pytest.mark.parametrize(
    "number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EROFS, errno.EMFILE, errno.ELOOP]
)
def test_what_the_system_refuses_is_one_line_of_a_command(number):
    ended = CliRunner().invoke(fail, [str(number)])
    assert ended.exit_code == 1
    assert ended.stderr.startswith(f"error: /data/x: cannot be used ({os.strerror(number)}); ")
    assert ended.stderr.count("\n") == 1


def test_a_full_disk_without_a_name_is_of_the_run(tmp_path):
    ended = CliRunner().invoke(fail, [str(errno.ENOSPC), "--run-dir", str(tmp_path)])
    assert ended.stderr.startswith(f"error: {tmp_path}: cannot be written (No space left")


def test_a_reader_that_has_seen_enough_is_no_error():
    ended = CliRunner().invoke(fail, [str(errno.EPIPE)])
    assert ended.stderr == ""


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE])
def test_a_file_that_cannot_be_had_now_is_not_damaged(tmp_path, number):
    error = OSError(number, os.strerror(number), str(tmp_path / "x"))
    assert is_on_the_way(tmp_path, error)
    with pytest.raises(StoreError, match=f"{tmp_path}/x: cannot be used"), reaching(tmp_path):
        raise error


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENOSPC])
def test_a_file_that_is_missing_or_of_another_kind_is(tmp_path, number):
    assert not is_on_the_way(tmp_path, OSError(number, os.strerror(number)))


def test_a_file_that_is_missing_stays_an_error_of_its_own(tmp_path):
    with pytest.raises(FileNotFoundError), reaching(tmp_path):
        (tmp_path / "x").read_bytes()
    with pytest.raises(StoreError, match="Is a directory"), reaching(tmp_path):
        tmp_path.read_bytes()


def test_an_error_of_a_library_without_a_number_has_its_words():
    assert line_of(OSError("no such\nmodel"), "hub").startswith(
        "hub: cannot be used (no such model)"
    )
    assert system_error(ValueError("no error of the system")) is None
