"""Credentials that somebody gives where none belong: refused, told nowhere, and kept nowhere."""

import json
import socket
import string
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli import inspect_shards, prepare_data, sam_candidates
from pipeline.commands import verb
from pipeline.config import differences, parse_config
from pipeline.credentials import holds_credentials, redacted
from pipeline.data_config import DataConfig
from pipeline.engines import Engine, run_tasks
from pipeline.errors import ConfigError, StoreError
from pipeline.places import place
from tests.pipeline.null_stages import null_plan

SCRIPTS = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"][
    "scripts"
]
KEY, SECRET = "AKIATESTNOTREAL00000", "hush/One+hush/Two/hush-Three"
PIECES = (KEY, "hush", "One", "Two", "Three")
"""No part of them may be told: a cut or a wrapped line may leave a part."""
URLS = {
    "key and secret": f"s3://{KEY}:{SECRET}@bucket/run",
    "secret alone": f"s3://{SECRET.replace('/', '.')}@bucket/run",
    "secret with an at": f"s3://{KEY}:hush@One/Two@bucket/run",
    "secret with a colon": f"gs://{KEY}:hush:One/Two@bucket/run",
    "signed": f"https://host/a?X-Amz-Expires=60&X-Amz-Signature={SECRET}",
    "token": f"https://host/a?token={SECRET}",
    "chained": f"simplecache::s3://{KEY}:{SECRET}@bucket/run",
    "one slash": f"s3:/{KEY}:{SECRET}@bucket/run",
    "file": f"file://{KEY}:{SECRET}@host/run",
    "key alone": f"s3://{KEY}@bucket/a@b",
}


def told(ended):
    """Give the pieces of a secret that a command printed."""
    assert ended.exception is None or isinstance(ended.exception, SystemExit)
    printed = ended.stdout + ended.stderr
    return [piece for piece in PIECES if piece in printed]


def script(name):
    module, attribute = SCRIPTS[name].split(":")
    return getattr(import_module(module), attribute)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to run in, with a config: what a URL is taken for by mistake would be made here."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stages.yaml").write_text("version: 1\ndata: {reader: scenes}\n")
    yield tmp_path
    assert [path.name for path in tmp_path.rglob("*")] == ["stages.yaml"]
    assert not [piece for piece in PIECES if piece in (tmp_path / "stages.yaml").read_text()]


BLANK = f"s3://{KEY}:hush One/Two@bucket/run"


@pytest.mark.parametrize("url", [*URLS.values(), BLANK], ids=[*URLS, "secret with a blank"])
def test_a_run_directory_with_credentials_is_refused_untold(here, url):
    for command in (prepare_data, sam_candidates):
        for more in ([], ["--dry-run"]):
            ended = CliRunner().invoke(command, ["--run-dir", url, *more])
            assert (ended.exit_code, told(ended)) == (2, [])
            assert "URL without credentials, found some in it" in ended.stderr
    for name in ("status", "verify", "repair", "failures", "summary"):
        ended = CliRunner().invoke(inspect_shards, [name, url])
        assert (ended.exit_code, told(ended)) == (2, [])


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "inspect-shards"])
def test_no_verb_takes_or_tells_credentials(here, name):
    url = URLS["key and secret"]
    for arguments, code, message in (
        (["--run-dir", url], 2, "without credentials"),
        (["--config", url], 2, "expected a path on a disk, found a URL; copy the file to a disk"),
        (["--set", f"data.annotations={url}"], 1, "--set data.annotations: expected no creden"),
    ):
        ended = CliRunner().invoke(script(name), arguments)
        assert (ended.exit_code, told(ended)) == (code, []), ended.output
        assert message in ended.stderr.replace("\n", " ")


@pytest.mark.parametrize("url", URLS.values(), ids=URLS)
def test_an_override_with_credentials_is_refused_untold(here, url):
    for override in (
        f"data.annotations={url}", f"data.images='{url}'", f"{url}=1", url,
        f"candidates.masks={{format: coco, path: {url}}}", f"data.nothing={url}", f"data.x=[{url}",
        f"nope.a={url}", f"data={url}",
    ):  # fmt: skip
        ended = CliRunner().invoke(prepare_data, ["--set", override, "--run-dir", "run"])
        assert (ended.exit_code, told(ended)) == (1, []), override
        assert "expected no credentials, found a URL with some in it" in ended.stderr
        assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("url", URLS.values(), ids=URLS)
def test_a_config_with_credentials_is_refused_untold(here, url):
    path = here / "stages.yaml"
    sound = path.read_text()
    for line in (
        f"data: {{reader: jsonl, annotations: '{url}'}}", f"# from {url}", f"data: [{url}",
        f"'{url}': 1", f"data: {{reader: jsonl, '{url}': 1}}",
    ):  # fmt: skip
        path.write_text(f"version: 1\n{line}\n")
        ended = CliRunner().invoke(prepare_data, ["--run-dir", "run"])
        assert (ended.exit_code, told(ended)) == (1, []), line
        assert "stages.yaml: line 2: expected no credentials" in ended.stderr
        assert ended.stderr.count("\n") == 1
    path.write_text(sound)


@pytest.mark.parametrize("url", URLS.values(), ids=URLS)
def test_no_config_is_made_of_credentials(url):
    """Whoever makes one of a mapping: it is printed, and kept with what it decided."""
    for mapping in (
        {"reader": "jsonl", "annotations": url},
        {"reader": url},
        {"reader": "jsonl", "links_into": [url]},
    ):
        with pytest.raises(ConfigError) as refused:
            parse_config(DataConfig, mapping, "here")
        assert not [piece for piece in PIECES if piece in str(refused.value)]


@pytest.mark.parametrize("url", URLS.values(), ids=URLS)
def test_what_an_older_plan_holds_is_compared_untold(tmp_path, url):
    from pipeline.commands import print_plan
    from pipeline.engines import Engine
    from pipeline.records import write_plan
    from pipeline.store import create_store

    old = null_plan(tmp_path, decides={"path": url})
    create_store(old.store, old.specs, old.num_items, old.shard_size, {})
    write_plan(old, {})
    (line,) = differences({"path": url}, {"path": "b"})
    assert line.startswith("path: ")

    @click.command()
    def dry_run():
        plan = null_plan(tmp_path, decides={"path": "b"})
        raise SystemExit(print_plan(plan, None, "squares", engine=Engine()))

    ended = CliRunner().invoke(dry_run)
    assert "would refuse" in ended.stdout
    assert "now" in ended.stdout
    assert (ended.exit_code, told(ended)) == (1, [])
    assert not [piece for piece in PIECES if piece in line]


@pytest.mark.parametrize(
    "address", ["tcp://user:hush@h:9", "user:hush@h:9", "hush@h", "tls://hush@h"]
)
def test_a_scheduler_with_a_user_is_refused_untold(here, address):
    for command in (sam_candidates, script("run-rounds")):
        ended = CliRunner().invoke(command, ["--cluster", address, "--run-dir", "run"])
        assert (ended.exit_code, told(ended)) == (2, [])
        assert "--cluster: expected PROTOCOL://HOST:PORT" in ended.stderr


USUAL = st.text(alphabet=string.ascii_letters + string.digits + "/+=@:?&%~._-!", min_size=8)


@given(user=st.text(alphabet=string.ascii_letters, min_size=1), secret=USUAL)
def test_any_secret_in_a_url_is_hidden_and_refused(user, secret):
    url = f"s3://{user}:{secret}@bucket/a"
    assert holds_credentials(url)
    for text in (url, f"no {url}: it failed", json.dumps({"a": [url]}), repr(url)):
        assert secret not in redacted(text)
    with pytest.raises(ConfigError, match="without credentials") as refused:
        place(url)
    assert secret not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    ["s3://bucket/a@b/c", "memory://bucket/run@2: not there", "/data/me@home: cannot be read",
     "file:///home/a@b", "tcp://host:8786", "a@b.org", "https://host/a?page=2", "C:/a/b.png",
     "of the run s3://bucket/a: b@c", "key=1", "AKIA is a prefix"],
)  # fmt: skip
def test_what_holds_no_credentials_stays_as_it_is(text):
    assert redacted(text) == text
    assert not holds_credentials(text)


def test_an_at_behind_the_bucket_is_a_name():
    assert str(place("memory://bucket/run@2/c")) == "memory://bucket/run@2/c"
    assert place("runs/me@home") == Path("runs/me@home")


def test_keys_that_a_role_hands_out_are_hidden():
    assert redacted("the key ASIATESTNOTREAL00000 is not known") == "the key *** is not known"


def of_aws(folder):
    """Write a file of credentials as AWS's tools do; its key's id has no form of AWS."""
    (folder / "credentials").write_text(
        "[default]\naws_access_key_id = other-store-key-hush\n"
        f"aws_secret_access_key = {SECRET}\n[work]\naws_session_token = hush-of-another\n"
    )
    return str(folder / "credentials")


def test_credentials_of_the_files_of_aws_are_hidden_without_asking_anybody(tmp_path, monkeypatch):
    pytest.importorskip("botocore.session")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", of_aws(tmp_path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))

    def refuse(*_arguments, **_options):
        raise AssertionError("the network is asked")

    monkeypatch.setattr(socket, "socket", refuse)
    text = f"the key other-store-key-hush, {SECRET}, hush-of-another"
    assert redacted(text) == "the key ***, ***, ***"
    (tmp_path / "broken").write_text("[default\nno = file of settings")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "broken"))
    assert redacted(text) == text
    monkeypatch.delitem(sys.modules, "botocore.session")  # where S3 is not in use
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    assert redacted(text) == text


def test_a_store_that_quotes_the_key_of_a_file_is_told_without_it(tmp_path):
    pytest.importorskip("moto")
    from object_server import make_bucket, run, verb

    nothing = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"))
    url = f"s3://{make_bucket()}/run"
    command = [*verb("pipeline", "inspect_shards"), "status", url]
    ended = run(command, tmp_path, AWS_SHARED_CREDENTIALS_FILE=of_aws(tmp_path), **nothing)
    assert ended.code != 0
    assert "The key *** is not known here" in ended.out + ended.err
    assert not [piece for piece in PIECES if piece in ended.out + ended.err]


def fail_by(text):
    raise ValueError(f"no idea what to do with {text}")


def fails_telling(task):
    fail_by(URLS["key and secret"])


def test_what_nobody_expected_keeps_its_traceback_without_credentials():
    @click.command()
    @verb
    def unlucky():
        fails_telling(0)

    ended = CliRunner().invoke(unlucky)
    assert (ended.exit_code, told(ended)) == (1, [])
    assert "in fail_by" in ended.stderr
    assert "ValueError: no idea what to do with s3://***@bucket/run" in ended.stderr


def test_what_nobody_expected_and_tells_nothing_is_raised_as_it_is():
    @click.command()
    @verb
    def unlucky():
        fail_by("this")

    ended = CliRunner().invoke(unlucky)
    assert isinstance(ended.exception, ValueError)


@pytest.mark.dask
def test_what_nobody_expected_on_a_worker_is_logged_and_told_without_credentials(capfd):
    from distributed import LocalCluster

    # Workers of a cluster that somebody started, as they are by default: they log what fails.
    cluster = LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=None, silence_logs=False
    )
    with cluster, pytest.raises(StoreError, match=r"last with .*ValueError: no idea") as error:
        engine = Engine(name="address", cluster=cluster.scheduler_address)
        list(run_tasks(engine, fails_telling, [0], "unlucky"))
    printed = "".join(capfd.readouterr())
    assert "Compute Failed" in printed
    assert "ValueError: no idea what to do with s3://***@bucket/run" in printed
    assert not [piece for piece in PIECES if piece in printed + str(error.value)]
