"""The S3 server of the tests answers as S3 does: as if one request came after the other."""

import socket
import threading
import time
import urllib.request

import pytest
from object_server import ACCESS_KEY, ObjectServer

SIGNED = {"Authorization": f"Credential={ACCESS_KEY}/"}


class Counting:
    """Counts how many requests it is at, for a moment each."""

    def __init__(self):
        self.now = self.most = 0

    def __call__(self, environ, start_response):
        self.now += 1
        self.most = max(self.most, self.now)
        content = environ["wsgi.input"].read()
        time.sleep(0.02)
        self.now -= 1
        start_response("200 OK", [("Content-Length", str(len(content)))])
        return [content]


@pytest.fixture
def server():
    found = ObjectServer(Counting())
    found.start()
    yield found
    found.stop()


def send(server, content):
    request = urllib.request.Request(f"{server.url}/key", content, SIGNED, method="PUT")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read()


def test_many_at_once_are_served_one_after_the_other(server):
    answers = {}

    def ask(number):
        answers[number] = send(server, b"%d" % number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: b"%d" % number for number in range(8)}
    assert server.app.most == 1


def test_who_stops_while_sending_keeps_nobody_waiting(server):
    with socket.create_connection(("127.0.0.1", server.port)) as half:
        lines = ["PUT /key HTTP/1.1", "Host: here", f"Authorization: {SIGNED['Authorization']}",
                 "Content-Length: 10", "", "half "]  # fmt: skip
        half.sendall("\r\n".join(lines).encode())
        while not server.log:  # it is at it
            time.sleep(0.01)
        assert send(server, b"whole") == b"whole"
