"""A real object store for tests: moto's S3 server behind a gate that logs requests and can fail.

The server is a thread of the test process; what uses it runs in this process or in others, as
`environment` says. Its content lasts as long as the test process, also while it is stopped.
"""

import base64
import functools
import gc
import io
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import pytest

WHY = "needs an S3 server and client: pip install -e '.[dev]'"
moto_app = pytest.importorskip("moto.moto_server.werkzeug_app", reason=WHY)
pytest.importorskip("moto.s3.models", reason=WHY)
s3fs = pytest.importorskip("s3fs", reason=WHY)
serving = pytest.importorskip("werkzeug.serving", reason=WHY)

ACCESS_KEY = "AKIATESTONLYNOTREAL7"
SECRET_KEY = "test/only+secretaccesskeythatisnotreal00"
SESSION_TOKEN = "FwoGtestOnlySessionTokenNotReal=="
SECRETS = (ACCESS_KEY, SECRET_KEY, SESSION_TOKEN)
"""What must never be read anywhere."""

_ERROR = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{}</Code><Message>{}</Message></Error>"
_REASONS = {
    "503 Slow Down": ("SlowDown", "Please reduce your request rate."),
    "403 Forbidden": ("InvalidAccessKeyId", "The key {} is not known here."),
    "412 Precondition Failed": ("PreconditionFailed", "A precondition did not hold"),
    "409 Conflict": ("ConditionalRequestConflict", "A conflicting request is under way"),
}

Answer = str | float | None
"""What happens to a request: a status of `_REASONS`, "drop", seconds to wait, or None: served."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the server saw it."""

    method: str
    key: str
    """Bucket and key."""
    query: str
    copies: bool
    """Whether it copies another object."""
    answered: str

    def __str__(self) -> str:
        return f"{self.method} {self.key}{'?' + self.query if self.query else ''}"


class _Handler(moto_app.MotoRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_arguments: object) -> None:
        """Say nothing on stderr."""


@dataclass
class ObjectServer:
    """The server; `log` and `trouble` may be read and set at any time."""

    app: Callable[..., list[bytes]]
    log: list[Request] = field(default_factory=list)
    trouble: Callable[[str, str], Answer] = lambda _method, _key: None
    """Asked about every request by method and key."""
    port: int = 0
    _running: serving.BaseWSGIServer | None = None
    _one_by_one: threading.Lock = field(default_factory=threading.Lock)
    """S3 answers as if one request came after the other; moto closes an object that is replaced
    or deleted while another thread reads it, and answers 500."""

    def start(self) -> None:
        """Listen, on the same port as before."""
        self._running = serving.make_server(
            "127.0.0.1", self.port, self, threaded=True, request_handler=_Handler
        )
        self.port = self._running.port
        threading.Thread(target=self._running.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections and drop those that are there; the content stays."""
        running, self._running = self._running, None
        assert running is not None
        running.shutdown()
        running.server_close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def __call__(self, environ, start_response):
        method, key = environ["REQUEST_METHOD"], unquote(environ["PATH_INFO"]).lstrip("/")
        answer = "drop" if self._running is None else self.trouble(method, key)
        sent = re.search(r"Credential=([^/]*)/", environ.get("HTTP_AUTHORIZATION", ""))
        key_id = sent[1] if sent else ""
        if answer is None and key_id != ACCESS_KEY:
            answer = "403 Forbidden"
        if isinstance(answer, float):
            time.sleep(answer)
            answer = None
        copies = "HTTP_X_AMZ_COPY_SOURCE" in environ
        query = environ["QUERY_STRING"]
        self.log.append(Request(method, key, query, copies, answer or "served"))
        if answer is None:
            environ["wsgi.input"] = io.BytesIO(_body(environ))
            with self._one_by_one:
                return self.app(environ, start_response)
        if answer == "drop":
            with suppress(OSError):  # the other side was quicker
                environ["werkzeug.socket"].shutdown(2)
            raise ConnectionResetError
        code, message = _REASONS[answer]
        content = _ERROR.format(code, message.format(key_id)).encode()
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(content)))]
        start_response(answer, headers)
        return [b"" if method == "HEAD" else content]

    def since(self, start: int) -> list[Request]:
        """Give the requests after the first `start` ones."""
        return self.log[start:]


def _body(environ) -> bytes:
    """Read what a client sends: it may stop in the middle, and nobody else waits for it."""
    if environ.get("wsgi.input_terminated"):
        return environ["wsgi.input"].read()
    return environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))


@functools.cache
def object_server() -> ObjectServer:
    """Give the server of this test process."""
    app = moto_app.DomainDispatcherApplication(moto_app.create_backend_app)
    server = ObjectServer(app)
    server.start()
    return server


def environment(**changes: str | None) -> dict[str, str]:
    """Give the variables with which a process uses the server and nothing else."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "FSSPEC_", "SEMIRES_"))
    }
    own = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_SESSION_TOKEN": SESSION_TOKEN,
        "AWS_ENDPOINT_URL": object_server().url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_MAX_ATTEMPTS": "1",  # a server in trouble is one for seconds, not for minutes
        "OMP_NUM_THREADS": "1",
    }
    return {name: value for name, value in {**kept, **own, **changes}.items() if value is not None}


_BUCKETS = iter(range(1_000_000))


def make_bucket() -> str:
    """Make an empty bucket, by moto's own model, and give its name."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    name = f"bucket-{next(_BUCKETS)}"
    s3_backends[DEFAULT_ACCOUNT_ID]["aws"].create_bucket(name, "us-east-1")
    return name


def objects(bucket: str, below: str = "") -> dict[str, bytes]:
    """Give the content of a bucket by key, or of a folder of it by what follows; no request."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    keys = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[bucket].keys
    start = f"{below}/" if below else ""
    return {name[len(start) :]: keys[name].value for name in list(keys) if name.startswith(start)}


def put(bucket: str, key: str, content: bytes | None) -> None:
    """Write an object, or delete it; no request."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    if content is None:
        backend.delete_object(bucket, key)
    else:
        backend.put_object(bucket, key, content)


@contextmanager
def used_here(cache: Path) -> Iterator[ObjectServer]:
    """Use the server in this process: variables, and no connection left behind."""
    server = object_server()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
            patch.delenv(name)
        for name, value in environment(SEMIRES_CACHE=str(cache)).items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        try:
            yield server
        finally:
            server.trouble = lambda _method, _key: None
            s3fs.S3FileSystem.clear_instance_cache()
            with warnings.catch_warnings():  # zarr cannot close the connections of its own
                warnings.filterwarnings("ignore", "[Uu]nclosed", ResourceWarning)
                gc.collect()


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str
    seconds: float = 0.0

    @property
    def last_line(self) -> str:
        """The last line of stderr."""
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""


def verb(floor: str, name: str) -> list[str]:
    """Give the command line of a verb, as its console script runs it."""
    return [sys.executable, "-c", f"from {floor}.cli import {name}; {name}()"]


def start(
    command: list[str], cache: Path, *, stdin: bool = False, **changes: str | None
) -> "subprocess.Popen[str]":
    """Start a command in a process group of its own, as a user of the server."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        stdin=pipe if stdin else subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
        env=environment(**{"SEMIRES_CACHE": str(cache), **changes}),
    )


def run(command: list[str], cache: Path, **changes: str | None) -> Ended:
    """Run a command to its end."""
    began = time.monotonic()
    process = start(command, cache, **changes)
    out, err = process.communicate(timeout=200)
    return Ended(process.returncode, out, err, time.monotonic() - began)


_FORMS = [form(s) for s in SECRETS for form in (
    lambda s: s.encode(),
    lambda s: base64.b64encode(s.encode()).rstrip(b"="),
    lambda s: re.sub(r"[^A-Za-z0-9]", lambda m: f"%{ord(m[0]):02X}", s).encode(),
)]  # fmt: skip


def holds_secret(content: bytes | str) -> bool:
    """Tell whether something holds a credential, plainly, in base64 or as in a URL."""
    data = content.encode() if isinstance(content, str) else content
    return any(form in data for form in _FORMS)


class DeathError(BaseException):
    """The process ends: nothing that comes after reaches the store."""


_REQUESTS = ("ls", "find", "info", "exists", "isdir", "isfile", "open", "pipe_file", "cat_file",
             "put_file", "get_file", "rm_file", "modified")  # fmt: skip
"""What costs a request, of a file system in memory."""


class FailingMemory:
    """Counts the requests to objects in memory, and lets one fail.

    Within the block the request number `at`, from 0, raises; after a `DeathError` all others do,
    too. Renames, copies and links raise always: there are none in an object store.
    """

    def __init__(self, at: int | None = None, error: BaseException | None = None) -> None:
        self.count = 0
        self.asked: list[str] = []
        self._at = at
        self._error = error or OSError(16, "Slow Down")
        self._inside = threading.local()
        self._patch = pytest.MonkeyPatch()

    @property
    def failed(self) -> bool:
        """Whether the request came that fails."""
        return self._at is not None and self.count > self._at

    def __enter__(self) -> "FailingMemory":
        from fsspec.implementations.memory import MemoryFileSystem

        for name in _REQUESTS:
            self._patch.setattr(MemoryFileSystem, name, self._counted(name))
        for name in ("mv", "move", "rename", "copy", "cp", "cp_file", "link", "symlink"):
            self._patch.setattr(MemoryFileSystem, name, self._refused(name), raising=False)
        return self

    def __exit__(self, *_error: object) -> None:
        self._patch.undo()

    def _counted(self, name):
        from fsspec.implementations.memory import MemoryFileSystem

        real = getattr(MemoryFileSystem, name)

        @functools.wraps(real)
        def request(filesystem, *arguments, **options):
            if getattr(self._inside, "depth", 0):
                return real(filesystem, *arguments, **options)
            number, self.count = self.count, self.count + 1
            self.asked.append(f"{name} {arguments[0] if arguments else ''}")
            dead = self.failed and isinstance(self._error, DeathError)
            if number == self._at or dead:
                raise self._error
            self._inside.depth = 1
            try:
                return real(filesystem, *arguments, **options)
            finally:
                self._inside.depth = 0

        return request

    @staticmethod
    def _refused(name):
        def refuse(*_arguments, **_options):
            raise AssertionError(f"an object store has no {name}")

        return refuse
