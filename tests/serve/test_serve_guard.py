"""Who may ask a server, that nobody keeps it from the others, and how it starts and stops."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from serve.serving import encoded, half_red, running, thresholds
from spiritseg.cli import main
from spiritseg.errors import ConfigError, RunError

pytest.importorskip("gradio", reason="the web extra is not installed")
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from spiritseg.serve import make_app, serve, upload_folder
from spiritseg.serve.guard import Guard, PromptProtocol
from spiritseg.serve.page import Students


@pytest.fixture(scope="module")
def app() -> Iterator[ASGIApp]:
    with upload_folder() as folder:
        yield make_app(Students(thresholds()), folder)


HEAD = b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\n"
BODY = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
UPLOAD = b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 90000\r\n\r\n" + BODY


@contextmanager
def _half_open(address: tuple[str, int], count: int, data: bytes) -> Iterator[list[socket.socket]]:
    """Open connections that send something and then nothing."""
    with ExitStack() as stack:
        opened = []
        for _ in range(count):
            opened.append(stack.enter_context(socket.create_connection(address, timeout=20)))
            with suppress(OSError):  # closed already
                opened[-1].sendall(data)
        yield opened


def _upload(address: tuple[str, int]) -> int:
    """Upload an image; return the status of the answer."""
    body = BODY + encoded(half_red()) + b"\r\n--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    url = f"http://{address[0]}:{address[1]}/gradio_api/upload"
    with urlopen(Request(url, body, kind), timeout=20) as answer:
        return int(answer.status)


@pytest.mark.parametrize("data", [b"", HEAD, HEAD + UPLOAD], ids=["nothing", "head", "upload"])
def test_half_a_request_keeps_nobody_out(app: ASGIApp, data: bytes) -> None:
    with running(app) as address, _half_open(address, 140, data):
        assert _upload(address) == 200


@pytest.mark.parametrize("data", [b"", HEAD + UPLOAD], ids=["nothing", "upload"])
def test_a_request_has_a_time_limit(
    app: ASGIApp, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr(PromptProtocol, "request_s", 0.5)
    with running(app) as address, _half_open(address, 1, data) as (slow,):
        started = time.monotonic()
        with suppress(OSError):
            while time.monotonic() < started + 10:  # trickling does not help
                slow.sendall(data[:1])
                time.sleep(0.1)
                slow.settimeout(0.05)
                with suppress(TimeoutError):
                    if not slow.recv(4096):
                        break
        assert time.monotonic() - started < 9


def test_a_slow_upload_that_goes_on_arrives(app: ASGIApp) -> None:
    body = BODY + encoded(half_red()) + b"\r\n--x--\r\n"
    head = HEAD + UPLOAD.removesuffix(BODY).replace(b"90000", str(len(body)).encode())
    step = len(body) // 4 + 1
    with running(app) as address, _half_open(address, 1, head) as (slow,):
        for start in range(0, len(body), step):
            time.sleep(0.2)
            slow.sendall(body[start : start + step])
        assert slow.recv(4096).startswith(b"HTTP/1.1 200")


HERE = "127.0.0.1:7860"
LOCAL: dict[str, Any] = {}
LAN: dict[str, Any] = {"address": "192.168.1.5"}
EVERY: dict[str, Any] = {"address": "0.0.0.0"}
PROXIED: dict[str, Any] = {"names": ["Road.example.org"]}


@pytest.mark.parametrize(
    ("served", "host", "origin", "status"),
    [
        (LOCAL, HERE, None, 200),
        (LOCAL, HERE, f"http://{HERE}", 200),
        (LOCAL, "[::1]:7860", "http://[::1]:7860", 200),
        (LOCAL, "LocalHost.", None, 200),
        (LOCAL, HERE, "http://evil.example", 403),
        (LOCAL, HERE, "null", 403),
        (LOCAL, HERE, "http://127.0.0.1:3000", 403),
        (LOCAL, HERE, f"http://{HERE}.evil.example", 403),
        (LOCAL, HERE, "http://[", 403),
        (LOCAL, "evil.example:7860", "http://evil.example:7860", 403),
        (LOCAL, "127.0.0.1.evil.example", None, 403),
        (LOCAL, f"evil.example@{HERE}", None, 403),
        (LOCAL, "192.168.1.5:7860", None, 403),
        (LOCAL, "", None, 403),
        (LAN, "192.168.1.5:7860", "http://192.168.1.5:7860", 200),
        (LAN, "192.168.1.6:7860", None, 403),
        (EVERY, "192.168.1.5:7860", "http://192.168.1.5:7860", 200),
        (EVERY, "[fe80::1]:7860", None, 200),
        (EVERY, f"{socket.gethostname()}:7860", None, 200),
        (EVERY, "evil.example:7860", None, 403),
        (EVERY, "192.168.1.5:7860", "http://192.168.1.6:7860", 403),
        (PROXIED, "road.example.org", "https://road.example.org", 200),
        (PROXIED, HERE, "https://road.example.org", 200),  # a proxy that sends its own Host
        (PROXIED, HERE, "https://evil.example", 403),
    ],
)
def test_who_is_answered(
    served: dict[str, Any], host: str, origin: str | None, status: int, tmp_path: Path
) -> None:
    guard = Guard(PlainTextResponse("page"), tmp_path, 1 << 20, **served)
    answer = TestClient(guard).get(
        "/", headers={"host": host} | ({} if origin is None else {"origin": origin})
    )
    assert answer.status_code == status
    assert ("does not answer" in answer.text) == (status == 403)


@pytest.mark.parametrize("name", ["http://road.example.org", "road.example.org:80", "a/b", ""])
def test_what_is_not_a_host_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a host name"):
        Guard(PlainTextResponse("page"), tmp_path, 1, names=[name])


DOORS = [
    "/gradio_api/file={}",
    "/gradio_api/file=%2e%2e/%2e%2e/{}",
    "/gradio_api/file/{}",
    "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e{}",
    "/assets/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..{}",
    "/svelte/{}",
    "/gradio_api/proxy=file://{}",
    "/gradio_api/file=http://127.0.0.1:1/{}",
    "/gradio_api/custom_component/1/client/component/..{}",
    "/monitoring",
    "/gradio_api/vibe-code",
]


@pytest.mark.parametrize("door", DOORS)
def test_no_other_file_is_read(app: ASGIApp, tmp_path: Path, door: str) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret of another folder")
    client = TestClient(app, f"http://{HERE}", raise_server_exceptions=False)
    answer = client.get(door.format(secret))
    assert answer.status_code in (403, 404), answer.text[:200]
    assert "the secret" not in answer.text


@pytest.mark.parametrize("door", ["run/predict", "process_recording", "vibe-edit/", "stream/1"])
def test_nothing_else_is_posted(app: ASGIApp, door: str) -> None:
    answer = TestClient(app, f"http://{HERE}").post(f"/gradio_api/{door}", json={"data": []})
    assert answer.status_code == 404


def test_the_page_may_ask_no_other_host(app: ASGIApp) -> None:
    page = TestClient(app, f"http://{HERE}").get("/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "https://fonts" not in page.text


def test_a_port_is_taken_before_the_students_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def opening(paths: list[str], *options: object) -> None:
        with socket.create_server(("127.0.0.1", port)):
            raise AssertionError("both listen")

    monkeypatch.setattr(sys.modules["spiritseg.serve.page"], "open_students", opening)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        with pytest.raises(RunError, match=f"cannot listen on 127.0.0.1:{port}"):
            serve(["first"], port=port)
    with pytest.raises(OSError, match="in use"):
        serve(["first"], port=port)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["/nowhere"], "there is no"),
        (["x" * 5000], "File name too long"),
        (["STUDENT", "--host", "x" * 5000], "cannot listen on"),
        (["STUDENT", "--allow-host", "http://x"], "expected a host name"),
        (["STUDENT", "--max-mib", "0"], "--max-mib above 0"),
    ],
)
def test_mistakes_on_the_command_line(
    words: list[str], reason: str, student_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(student_folder) if word == "STUDENT" else word for word in words]
    with pytest.raises(SystemExit) as caught:
        main(["serve", *words, "--port", "0"])
    assert caught.value.code == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [(signal.SIGINT, 0, ""), (signal.SIGTERM, 143, "\nspiritseg: stopped.\n")],
)
def test_a_signal_stops_a_server(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: signal.Signals,
    code: int,
    message: str,
) -> None:
    monkeypatch.setattr(
        sys.modules["spiritseg.serve.page"], "open_students", lambda *_: thresholds()
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folders: list[str] = []
    ended = threading.Event()

    def press() -> None:
        deadline = time.monotonic() + 60
        while not folders and time.monotonic() < deadline and not ended.wait(0.02):
            with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/config", timeout=20):
                folders.append(os.environ["GRADIO_TEMP_DIR"])
        if not ended.is_set():
            os.kill(os.getpid(), given)

    presser = threading.Thread(target=press)
    presser.start()
    try:
        with pytest.raises(SystemExit) as caught:
            main(["serve", "low", "--port", str(port)])
    finally:
        ended.set()
        presser.join()
    shown = capsys.readouterr()
    assert (caught.value.code, shown.err) == (code, message)
    assert f"http://127.0.0.1:{port}  (stop with Ctrl-C)" in shown.out
    assert not Path(folders[0]).exists()
