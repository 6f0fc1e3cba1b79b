"""Who may ask a server, and that nobody keeps it from the others; what it holds afterwards."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from deploy.serving import Threshold, encoded, half_red
from spiritseg.cli import main
from spiritseg.errors import ConfigError
from spiritseg.export.export import ExportReport

pytest.importorskip("fastapi", reason="the web extra is not installed")
from starlette.testclient import TestClient

from spiritseg.deploy.serve.connections import PromptProtocol, make_server
from spiritseg.deploy.serve.endpoint import make_endpoint
from spiritseg.deploy.serve.origins import OwnOrigin, ServedAs
from spiritseg.deploy.serve.students import Students
from spiritseg.deploy.serve.uploads import Limits

HALF_HEAD = b"POST /api/predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
HALF_UPLOAD = (
    HALF_HEAD + b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 90000\r\n\r\n"
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
)


@contextmanager
def _served(limits: Limits) -> Iterator[tuple[str, int]]:
    """Serve a student on a free port of this machine."""
    server = make_server(make_endpoint(Students({"low": Threshold(63)}), limits))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(256)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()
        finally:
            server.should_exit = True
            thread.join(20)


@contextmanager
def _half_open(address: tuple[str, int], count: int, data: bytes) -> Iterator[list[socket.socket]]:
    """Open connections that send something and then nothing."""
    with ExitStack() as stack:
        opened = []
        for _ in range(count):
            opened.append(stack.enter_context(socket.create_connection(address, timeout=20)))
            opened[-1].sendall(data)
        yield opened


def _upload(address: tuple[str, int]) -> int:
    """Upload an image; return the status of the answer."""
    body = HALF_UPLOAD.partition(b"\r\n\r\n")[2] + encoded(half_red()) + b"\r\n--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    url = f"http://{address[0]}:{address[1]}/api/predict"
    try:
        with urlopen(Request(url, body, kind), timeout=20) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


def _closed_after_s(connection: socket.socket) -> float:
    """Wait until the server has closed a connection."""
    started = time.monotonic()
    while connection.recv(4096):
        pass
    return time.monotonic() - started


def _trickled(connection: socket.socket, data: bytes) -> int:
    """Send ten bytes a second; return how many until the server closed the connection."""
    for number in range(len(data)):
        try:
            connection.sendall(data[number : number + 1])
        except OSError:
            return number
        time.sleep(0.1)
    return len(data)


@pytest.mark.parametrize("data", [HALF_HEAD, b""])
def test_half_a_head_keeps_nobody_out(data: bytes) -> None:
    with _served(Limits()) as address, _half_open(address, 140, data):
        assert _upload(address) == 200


def test_a_head_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PromptProtocol, "head_s", 0.5)
    answered = b"GET /api/health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with _served(Limits()) as address, _half_open(address, 1, HALF_HEAD) as (slow,):
        assert _closed_after_s(slow) < 10
        with _half_open(address, 1, answered) as (again,):
            assert b"200" in again.recv(4096)
            again.sendall(HALF_HEAD)  # of a second request
            assert _closed_after_s(again) < 3  # uvicorn's own 5 s are for one that sends nothing
        with _half_open(address, 1, b"") as (trickling,):
            assert _trickled(trickling, HALF_HEAD * 3) < len(HALF_HEAD)


def test_half_an_upload_is_given_up() -> None:
    limits = Limits(silence_s=0.5)
    with _served(limits) as address, _half_open(address, 9, HALF_UPLOAD) as uploads:
        answers = [one.recv(4096).split(b"\r\n", 1)[0] for one in uploads]
        late = answers.count(b"HTTP/1.1 408 Request Timeout")
        assert (late, answers.count(b"HTTP/1.1 503 Service Unavailable")) == (8, 1)
        assert _upload(address) == 200


def test_a_slow_upload_that_goes_on_arrives() -> None:
    body = HALF_UPLOAD.partition(b"\r\n\r\n")[2] + encoded(half_red()) + b"\r\n--x--\r\n"
    head = HALF_UPLOAD.partition(b"\r\n\r\n")[0].replace(b"90000", str(len(body)).encode())
    step = len(body) // 4 + 1
    with (
        _served(Limits(silence_s=2)) as address,
        _half_open(address, 1, head + b"\r\n\r\n") as (slow,),
    ):
        for start in range(0, len(body), step):
            time.sleep(0.7)  # 2.8 s in all
            slow.sendall(body[start : start + step])
        assert slow.recv(4096).startswith(b"HTTP/1.1 200")


HERE = "127.0.0.1:7860"
ANYWHERE = ServedAs("0.0.0.0")
PROXIED = ServedAs(names=("Road.example.org",))


@pytest.mark.parametrize(
    ("served_as", "host", "origin", "status"),
    [
        (ServedAs(), HERE, None, 200),
        (ServedAs(), HERE, f"http://{HERE}", 200),
        (ServedAs(), "localhost:7860", "http://localhost:7860", 200),
        (ServedAs(), "[::1]:7860", "http://[::1]:7860", 200),
        (ServedAs(), "LocalHost.", None, 200),
        (ServedAs(), HERE, "http://evil.example", 403),
        (ServedAs(), HERE, "null", 403),
        (ServedAs(), HERE, "http://127.0.0.1:3000", 403),
        (ServedAs(), HERE, "http://localhost:7860", 403),
        (ServedAs(), HERE, f"http://{HERE}.evil.example", 403),
        (ServedAs(), HERE, "http://[", 403),
        (ServedAs(), "evil.example:7860", "http://evil.example:7860", 403),
        (ServedAs(), "evil.example:7860", None, 403),
        (ServedAs(), "127.0.0.1.evil.example", None, 403),
        (ServedAs(), f"evil.example@{HERE}", None, 403),
        (ServedAs(), "192.168.1.5:7860", None, 403),
        (ServedAs(), "", None, 403),
        (ServedAs("192.168.1.5"), "192.168.1.5:7860", "http://192.168.1.5:7860", 200),
        (ServedAs("192.168.1.5"), "192.168.1.6:7860", None, 403),
        (ANYWHERE, "192.168.1.5:7860", "http://192.168.1.5:7860", 200),
        (ANYWHERE, "[fe80::1]:7860", None, 200),
        (ANYWHERE, f"{socket.gethostname()}:7860", None, 200),
        (ANYWHERE, "localhost:80", None, 200),
        (ANYWHERE, "evil.example:7860", None, 403),
        (ANYWHERE, "192.168.1.5:7860", "http://192.168.1.6:7860", 403),
        (PROXIED, "road.example.org", "https://road.example.org", 200),
        (PROXIED, HERE, "https://road.example.org", 200),  # a proxy that sends its own Host
        (PROXIED, HERE, "https://evil.example", 403),
    ],
)
def test_who_is_answered(served_as: ServedAs, host: str, origin: str | None, status: int) -> None:
    app = OwnOrigin(make_endpoint(Students({"low": Threshold(63)}), Limits()), served_as)
    headers = {"host": host} | ({} if origin is None else {"origin": origin})
    client = TestClient(app)
    files = {"file": ("x", encoded(half_red()))}
    for answer in (
        client.get("/api/students", headers=headers),
        client.post("/api/predict", files=files, headers=headers),
    ):
        assert answer.status_code == status, answer.text
        assert ("does not answer" in answer.json().get("error", "")) == (status == 403)


@pytest.mark.parametrize("name", ["http://road.example.org", "road.example.org:80", "a/b", ""])
def test_a_host_name_is_no_address_of_a_page(name: str) -> None:
    with pytest.raises(ConfigError, match="expected a host name"):
        ServedAs(names=(name,))


def test_the_command_hands_host_names_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(
        "spiritseg.deploy.serve.server.serve", lambda *words, **options: given.append(options)
    )
    with pytest.raises(SystemExit) as caught:
        main(["serve", "a", "--host", "0.0.0.0", "--allow-host", "x.org", "--allow-host", "y.org"])
    assert (caught.value.code, given[0]["names"]) == (0, ["x.org", "y.org"])


HELD = """
import json, sys
import numpy as np
from spiritseg.deploy.serve.students import open_students

def mib(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

students = open_students(sys.argv[1:], threads=1)
held = []
for size in ((64, 80), (2100, 2100), (80, 60000)):
    with students.giving_back():
        students.answer(students.names[0], np.zeros((*size, 3), np.uint8))
    held.append(mib("VmRSS"))
print(json.dumps([*held, mib("VmHWM")]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_the_memory_of_a_large_image_is_given_back(exported: ExportReport) -> None:
    command = [sys.executable, "-c", HELD, str(exported.paths[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, *held, peak = json.loads(done.stdout)
    assert peak > before + 150  # MiB
    assert max(held) < before + 80


def test_an_upload_is_followed_by_a_small_pass_where_it_was_large() -> None:
    student = Threshold(63)
    client = TestClient(make_endpoint(Students({"low": student}), Limits()))
    passes = []
    for size in ((48, 64), (2000, 2100), (48, 64)):
        student.calls = 0
        files = {"file": ("x", encoded(half_red(*size)))}
        assert client.post("/api/predict", files=files).status_code == 200
        passes.append(student.calls)
    assert passes == [2, 3, 2]
