"""Places: paths and URLs alike, what is refused, and what is never said."""

import pickle
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from pipeline import places
from pipeline.commands import PlaceType
from pipeline.errors import ConfigError, StoreError
from pipeline.places import (
    create_once,
    delete,
    is_local,
    lengths_below,
    names_in,
    place,
    reaching,
    redacted,
    relative_name,
    remove_tree,
)


@pytest.fixture
def folder(tmp_path):
    """An empty folder in memory."""
    found = place(f"memory://{tmp_path.name}/run")
    yield found
    remove_tree(found.parent)


def test_a_path_and_a_file_url_are_places_on_a_disk():
    assert place("runs/a") == Path("runs/a")
    assert place("file:///tmp/a") == Path("/tmp/a")
    assert is_local(place("FILE:///tmp/a"))
    assert place("odd:name/a") == Path("odd:name/a")


def test_a_url_is_a_place_in_an_object_store():
    found = place("Memory://bucket/run/")
    assert not is_local(found)
    assert str(found / "x.json") == "memory://bucket/run/x.json"
    assert relative_name(found / "a" / "b", found) == "a/b"


@pytest.mark.parametrize(
    "text",
    ["s3://me:hidden-word@bucket/a", "s3://bucket/a?X-Amz-Signature=hidden-word",
     "s3://hidden-word@bucket/a", "memory://me:hidden-word@bucket/a",
     "s3://me:hidden-word/and+more@bucket/a", "s3://me:and/more/hidden-word@bucket",
     "simplecache::s3://me:a/hidden-word@bucket/a", "s3:/me:a/hidden-word@bucket/a",
     "https://host/a?token=hidden-word"],
)  # fmt: skip
def test_credentials_in_a_url_are_refused_and_not_repeated(text):
    with pytest.raises(ConfigError, match="without credentials") as error:
        place(text)
    assert "hidden-word" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["s3://", "s3:///a", "s3://bucket/../other", "s3://bucket/./a", "s3://bucket//a"]
)
def test_a_url_without_bucket_or_with_odd_names_is_refused(text):
    with pytest.raises(ConfigError, match="BUCKET/FOLDER"):
        place(text)


@pytest.mark.parametrize("text", ["s3:/bucket/a", "file:/tmp/a", "simplecache::s3://bucket/a"])
def test_what_is_nearly_a_url_names_no_folder(text):
    with pytest.raises(ConfigError, match="expected a path, or a URL PROTOCOL://BUCKET/FOLDER"):
        place(text)


def test_an_unknown_protocol_is_refused_by_its_name():
    with pytest.raises(ConfigError, match="fsspec knows, such as s3, gs, az, memory, found 'q3'"):
        place("q3://bucket/a")


def test_a_missing_library_is_named_with_what_to_install(monkeypatch):
    def fail(*_arguments, **_options):
        raise ImportError("no module named s3fs")

    monkeypatch.setattr(places, "UPath", fail)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[s3\]'"):
        place("s3://bucket/a")


def test_memory_is_no_place_for_a_command():
    from click import BadParameter

    with pytest.raises(BadParameter, match="memory:// ends with the command"):
        PlaceType().convert("memory://bucket/a", None, None)


def test_places_are_listed_measured_and_removed(folder):
    for name in ("c/5", "c/50", "d/5/0", "d/50/0"):
        (folder / name).write_bytes(b"12")
    assert sorted(names_in(folder)) == ["c", "d"]
    assert lengths_below(folder) == {"c/5": 2, "c/50": 2, "d/5/0": 2, "d/50/0": 2}
    remove_tree(folder / "c" / "5")
    remove_tree(folder / "d" / "5")
    remove_tree(folder / "d" / "5")  # none there
    assert lengths_below(folder) == {"c/50": 2, "d/50/0": 2}
    delete(folder / "c" / "50")
    delete(folder / "c" / "50")
    assert lengths_below(folder) == {"d/50/0": 2}
    assert names_in(folder / "nothing") == []


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_one_of_many_creates(kind, folder, tmp_path):
    where = (tmp_path / "new" if kind == "disk" else folder) / "claim"
    assert [create_once(where, text) for text in (b"a", b"b", b"b")] == [True, False, False]
    assert where.read_bytes() == b"a"
    delete(where)
    assert create_once(where, b"c")


class ClientError(Exception):
    """As botocore's, to which s3fs translates errors."""

    __module__ = "botocore.exceptions"

    def __init__(self, status):
        super().__init__(f"status {status}")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


@pytest.mark.parametrize(("status", "created"), [(412, False), (409, False), (503, None)])
def test_stores_that_refuse_to_create_in_other_words(folder, monkeypatch, status, created):
    """Not every store says which precondition failed; two requests at once may be a conflict."""

    def refuse(*_arguments, **_options):
        raise OSError(22, "no") from ClientError(status)

    monkeypatch.setattr(type(folder.fs), "pipe_file", refuse)
    if created is None:
        with pytest.raises(OSError, match="no"):
            create_once(folder / "claim", b"")
    else:
        assert create_once(folder / "claim", b"") is created


def test_trouble_with_a_store_is_one_line(folder):
    with pytest.raises(StoreError, match="cannot be used") as error, reaching(folder):
        raise ClientError(503)
    assert "\n" not in str(error.value)
    assert "nothing that is done is lost" in str(error.value)
    with pytest.raises(ZeroDivisionError), reaching(folder):
        raise ZeroDivisionError
    with pytest.raises(OSError, match="disk"), reaching(Path("/tmp")):
        raise OSError("disk")


@pytest.mark.parametrize(
    "name",
    ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "FSSPEC_S3_SECRET",
     "GOOGLE_APPLICATION_CREDENTIALS", "AZURE_STORAGE_CONNECTION_STRING",
     "AZURE_STORAGE_ACCOUNT_KEY"],
)  # fmt: skip
def test_credentials_of_the_environment_are_hidden(monkeypatch, name):
    monkeypatch.setenv(name, "a/Very+secretValue")
    assert redacted("key a/Very+secretValue, again a/Very+secretValue!") == "key ***, again ***!"


def test_credentials_of_the_settings_file_are_hidden(monkeypatch):
    settings = {
        "s3": {"key": "AKIAINTHEFILE", "secret": "in/the+file", "anon": False,
               "client_kwargs": {"aws_session_token": "nested-token"}},
        "gcs": {"token": {"private_key": "-----BEGIN-----"}},
        "az": {"account_name": "public-name"},
    }  # fmt: skip
    monkeypatch.setattr(fsspec.config, "conf", settings)
    text = "AKIAINTHEFILE in/the+file nested-token -----BEGIN----- public-name"
    assert redacted(text) == "*** *** *** *** public-name"


def test_the_longer_of_two_secrets_is_hidden_first(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "abcdefgh")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abcdefgh-and-more")
    assert redacted("abcdefgh-and-more abcdefgh") == "*** ***"


def test_what_is_no_secret_is_left_alone(monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "")
    assert redacted("us-east-1 x") == "us-east-1 x"


def test_an_error_that_quotes_a_credential_is_told_without_it(monkeypatch):
    import click
    from click.testing import CliRunner

    from pipeline.commands import verb

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a/Very+secretValue")
    url = "https://h/a?X-Amz-Signature=hidden-word"

    @click.command()
    @verb
    def fails():
        raise StoreError(
            f"s3://bucket: (the key a/Very+secretValue is wrong, s3://me:b/c@d, {url})"
        )

    ended = CliRunner().invoke(fails)
    assert ended.exit_code == 1
    hidden = "s3://***@d, https://h/a?X-Amz-Signature=***"
    assert ended.stderr == f"error: s3://bucket: (the key *** is wrong, {hidden}\n"


def test_a_place_travels_without_credentials(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a/Very+secretValue")
    found = place("s3://bucket/run") if _has_s3() else place("memory://bucket/run")
    assert b"Very" not in pickle.dumps(found)
    assert pickle.loads(pickle.dumps(found)) == found


def _has_s3():
    try:
        import s3fs
    except ImportError:
        return False
    return bool(s3fs)


FORKS = """
import os
from pipeline.places import here, place
found = place("memory://bucket/run")
before = found.fs
if not os.fork():
    print(found.fs is before, here(found).fs is before, flush=True)
    os._exit(0)
os.wait()
"""


def test_a_place_has_a_connection_of_its_own_process():
    """Forked from a process without threads, and inherited: to pickle it would make a new one."""
    ended = subprocess.run(
        [sys.executable, "-c", FORKS], check=False, capture_output=True, text=True, timeout=60
    )
    assert (ended.stdout, ended.stderr) == ("True False\n", "")
