"""Who can reach the workers: nobody from outside unless asked for, and by TLS nobody unknown."""

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import dask_clusters
from pipeline.dask_clusters import address_client, local_client
from pipeline.errors import ConfigError, StoreError

LISTENS = "0A"


def listening(pids):
    """Give the addresses, in hexadecimal, on which processes listen for TCP."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = str(descriptor.readlink())
            except FileNotFoundError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for row in Path(table).read_text().splitlines()[1:] if Path(table).exists() else ():
            columns = row.split()
            if columns[3] == LISTENS and columns[9] in inodes:
                found.append(columns[1].split(":")[0])
    return found


def is_loopback(address):
    """Tell 127.x.x.x and ::1, as /proc/net/tcp writes them: words in the machine's byte order."""
    little = sys.byteorder == "little"
    words = [address[i : i + 8] for i in range(0, len(address), 8)]
    plain = [word if not little else bytes.fromhex(word)[::-1].hex() for word in words]
    if len(plain) == 1:
        return plain[0].startswith("7f")
    mapped = plain[:3] == ["00000000", "00000000", "0000ffff"]
    if mapped:
        return plain[3].startswith("7f")
    return plain == ["00000000"] * 3 + ["00000001"]


needs_proc = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="no /proc/net/tcp")


@needs_proc
def test_an_open_socket_is_told_from_one_on_loopback():
    """Without this the test below would pass if no socket was ever found."""
    import socket

    for host, open_ in (("127.0.0.1", False), ("0.0.0.0", True)):
        with socket.create_server((host, 0)):
            addresses = listening([os.getpid()])
            assert any(not is_loopback(address) for address in addresses) is open_
    assert is_loopback("0100007F")
    assert is_loopback("00000000000000000000000001000000") is (sys.byteorder == "little")
    assert not is_loopback("00000000")
    assert not is_loopback("0" * 32)


@needs_proc
@pytest.mark.dask
def test_nothing_of_local_workers_listens_beyond_loopback():
    with local_client(2) as client:
        workers = client.run(os.getpid).values()
        addresses = listening({os.getpid(), *workers})
        assert len(set(workers)) == 2
        assert len(addresses) >= 3  # the scheduler and two workers at least
        assert [address for address in addresses if not is_loopback(address)] == []
        assert client.scheduler.address.startswith("tcp://127.0.0.1:")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A key and a certificate that signs itself, as (key, certificate) files."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make certificates with")
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=semires-test", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    return str(key), str(cert)


def tls_config(certificate):
    """Give what a user writes into Dask's config."""
    key, cert = certificate
    mine = {"key": key, "cert": cert}
    return {
        "distributed.comm.require-encryption": True,
        "distributed.comm.tls.ca-file": cert,
        "distributed.comm.tls.client": mine,
        "distributed.comm.tls.scheduler": mine,
        "distributed.comm.tls.worker": mine,
    }


@pytest.fixture
def tls_scheduler(certificate):
    """The address of a real scheduler with one worker, which speaks TLS only."""
    import dask
    from distributed import LocalCluster, Security

    with dask.config.set(tls_config(certificate)):
        security = Security()
    with LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", protocol="tls://", security=security,
        dashboard_address="127.0.0.1:0", silence_logs=50,
    ) as cluster:  # fmt: skip
        yield cluster.scheduler_address


@pytest.mark.dask
@pytest.mark.filterwarnings("ignore")  # of connections that a peer refuses
def test_a_tls_scheduler_takes_who_has_a_certificate_and_nobody_else(
    tls_scheduler, certificate, monkeypatch
):
    import dask

    assert tls_scheduler.startswith("tls://127.0.0.1:")
    with dask.config.set(tls_config(certificate)), address_client(tls_scheduler) as client:
        assert client.submit(sum, [1, 2]).result(timeout=20) == 3
    monkeypatch.setattr(dask_clusters, "CONNECT_SECONDS", 2)
    plain = tls_scheduler.replace("tls://", "tcp://")
    with (
        pytest.raises(StoreError, match=f"--cluster {plain}: no Dask scheduler answers") as refused,
        address_client(plain),
    ):
        pass
    assert "its address begins with tls://" in str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.raises(StoreError, match=r"set distributed\.comm\.tls\.ca-file") as unknown:
        address_client(tls_scheduler).__enter__()
    assert "\n" not in str(unknown.value)


@pytest.mark.parametrize(
    "address",
    ["tcp://127.0.0.1:9", "tcp://127.0.0.1:99999999", "nonsense://x", "tls://127.0.0.1:9", ""],
)
def test_an_address_where_nobody_answers_is_one_line_and_leaves_nothing_open(address, monkeypatch):
    """A client left half open closes itself when collected, and may wait for ever as it does."""
    monkeypatch.setattr(dask_clusters, "CONNECT_SECONDS", 1)
    before = open_clients()
    with pytest.raises(StoreError, match="no Dask scheduler answers") as refused:
        address_client(address).__enter__()
    assert "\n" not in str(refused.value)
    assert open_clients() <= before


@pytest.mark.parametrize("address", ["tcp://user:hidden-word@127.0.0.1:9", "hidden-word@h"])
def test_an_address_with_a_user_is_refused_and_not_repeated(address):
    """Dask names the address that it cannot use."""
    with pytest.raises(ConfigError, match="--cluster: expected PROTOCOL://HOST:PORT") as refused:
        address_client(address).__enter__()
    assert "\n" not in str(refused.value)
    assert "hidden-word" not in str(refused.value)


def open_clients():
    """Give the ids of all Dask clients of this process that were not closed."""
    from distributed import Client

    # By type: isinstance asks every object for its __class__, and some answer with a warning.
    clients = [thing for thing in gc.get_objects() if issubclass(type(thing), Client)]
    return {id(client) for client in clients if client.status != "closed"}
