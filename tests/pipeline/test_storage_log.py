"""What asyncio logs of connections to object stores is not the user's, everything else is."""

import asyncio
import gc
import logging
import ssl

import pytest

import pipeline.places  # noqa: F401 - as any user of it has
from pipeline.storage_log import keep_broken_connections_quiet

aiohttp = pytest.importorskip("aiohttp", reason="pip install -e '.[s3]'")


async def _broken_in_aiohttp():
    async with aiohttp.ClientSession() as session, session.get("http://127.0.0.1:1/"):
        pass


async def _raise(error: Exception):
    raise error


async def _plain_beneath_aiohttp():
    async def hang_up(*_arguments):
        raise ConnectionResetError("gone")

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(hang_up)
    async with aiohttp.ClientSession(trace_configs=[trace]) as session:
        await session.get("http://127.0.0.1:1/")


def forgotten(work, caplog) -> str:
    """Run a task that nobody asks for its outcome; give what was logged."""

    async def main():
        task = asyncio.ensure_future(work)
        await asyncio.wait([task])
        assert task.done()

    caplog.clear()
    with caplog.at_level(logging.DEBUG, logger="asyncio"):
        asyncio.run(main())
        gc.collect()
    return "\n".join(f"{r.getMessage()} {r.exc_info}" for r in caplog.records
                     if r.levelno >= logging.WARNING)  # fmt: skip


@pytest.mark.parametrize(
    "error",
    [
        aiohttp.ClientConnectionResetError("Cannot write to closing transport"),
        aiohttp.ServerDisconnectedError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_forgotten_request_is_not_told(error, caplog):
    assert forgotten(_raise(error), caplog) == ""


@pytest.mark.parametrize("work", [_broken_in_aiohttp, _plain_beneath_aiohttp])
def test_what_broke_beneath_a_library_is_not_told(work, caplog):
    assert forgotten(work(), caplog) == ""


@pytest.mark.parametrize(
    "error",
    [ValueError("ours"), ConnectionResetError("of a worker"), ssl.SSLError("of a scheduler")],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_are_told(error, caplog):
    assert repr(error) in forgotten(_raise(error), caplog)


def test_a_session_left_open_is_not_told_but_other_records_are(caplog):
    logger = logging.getLogger("asyncio")
    logger.error("Unclosed client session\nclient_session: <aiohttp.client.ClientSession at 1>")
    logger.error("Unclosed transport")
    logger.warning("Executing took 1 s")
    assert [r.getMessage() for r in caplog.records] == ["Unclosed transport", "Executing took 1 s"]


def test_it_is_set_once():
    before = list(logging.getLogger("asyncio").filters)
    keep_broken_connections_quiet()
    assert logging.getLogger("asyncio").filters == before
