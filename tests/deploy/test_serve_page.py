"""The page in a real browser; and the doors of Gradio that are shut."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from deploy.serving import Threshold, encoded, encoded_video, half_red
from spiritseg.errors import BundleError, ConfigError, RunError

pytest.importorskip("gradio", reason="the web extra is not installed")
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

from spiritseg.cli import main
from spiritseg.deploy.serve.server import make_app, serve
from spiritseg.deploy.serve.students import Students


@pytest.fixture(scope="module")
def app() -> FastAPI:
    names = {"low": 63, "high": 191, "<b>bold</b>": 127}
    return make_app(Students({name: Threshold(level) for name, level in names.items()}))


@pytest.fixture(scope="module")
def client(app: FastAPI) -> TestClient:
    return TestClient(app, "http://127.0.0.1:7860", raise_server_exceptions=False)


SECRET = "the secret of another folder"
DOORS = [
    "/gradio_api/file={}",
    "/gradio_api/file={}?x=1",
    "/gradio_api/file/{}",
    "/gradio_api/file=%2e%2e/%2e%2e/{}",
    "/file={}",
    "/static/..{}",
    "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e{}",
    "/assets/../../../../../../../../../../..{}",
    "/assets/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..{}",
    "/svelte/{}",
    "/svelte//{}",
    "/gradio_api/proxy=file://{}",
    "/gradio_api/proxy=http://127.0.0.1:1/{}",
    "/gradio_api/file=http://127.0.0.1:1/{}",
    "/gradio_api/custom_component/1/client/component/..{}",
    "/gradio_api/stream/a/b/1/playlist-file",
    "/gradio_api/deep_link?session_hash={}",
    "/api/../{}",
    "/monitoring",
    "/gradio_api/runs",
    "/gradio_api/vibe-code",
]


@pytest.mark.parametrize("door", DOORS)
def test_no_file_is_read_by_its_name(client: TestClient, tmp_path: Path, door: str) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET)
    answer = client.get(door.format(secret))
    assert answer.status_code == 404, answer.text[:200]
    assert SECRET not in answer.text


@pytest.mark.parametrize(
    "door",
    ["upload", "queue/join", "run/predict", "call/predict", "process_recording", "vibe-edit/"],
)
def test_gradio_takes_no_upload_and_no_event(
    client: TestClient, door: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    path = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    for form in ({"files": {"files": ("x.png", encoded(half_red()))}}, {"json": {"data": [path]}}):
        answer = client.post(f"/gradio_api/{door}", **form)
        assert answer.status_code == 404
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/", "/api/students", "/assets/x.js"])
def test_pages_of_other_sites_may_not_ask(client: TestClient, path: str) -> None:
    for headers in ({"origin": "http://evil.example"}, {"host": "evil.example:7860"}):
        assert client.get(path, headers=headers).status_code == 403


def test_the_page_may_ask_no_other_host(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "https://fonts" not in page.text


def test_what_cannot_be_served_is_said(
    tmp_path: Path, student_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="one student or more"):
        make_app(Students({}))
    with pytest.raises(BundleError, match="there is no"):
        serve([tmp_path / "nowhere"], port=0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(RunError, match="cannot listen on"):
            serve([student_folder], port=taken.getsockname()[1], threads=1)
    for words, said in (
        ([str(tmp_path / "nowhere")], "there is no"),
        (["x" * 5000], "File name too long"),
        ([str(student_folder), "--host", "x" * 5000], "cannot listen on"),
        ([str(student_folder), "--allow-host", "http://x"], "expected a host name"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["serve", *words, "--port", "0"])
        assert caught.value.code == 2
        assert said in capsys.readouterr().err


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_two_servers_do_not_share_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    port = _free_port()
    asked: list[str] = []

    def opening(paths: list[str], *options: object) -> Students:
        asked.extend(paths)
        if len(asked) == 1:  # while the first one is not done with this
            serve(["second"], port=port)
        raise AssertionError("both listen")

    monkeypatch.setattr("spiritseg.deploy.serve.students.open_students", opening)
    with pytest.raises(RunError, match=f"cannot listen on 127.0.0.1:{port}"):
        serve(["first"], port=port)
    assert asked == ["first"]


def test_ctrl_c_stops_a_server_without_a_complaint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    students = Students({"low": Threshold(63)})
    monkeypatch.setattr("spiritseg.deploy.serve.students.open_students", lambda *options: students)
    port = _free_port()
    answered, ended = threading.Event(), threading.Event()

    def press() -> None:
        deadline = time.monotonic() + 20
        while not answered.is_set() and time.monotonic() < deadline:
            with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/api/students", timeout=20):
                answered.set()
            if ended.wait(0.02):
                return
        os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    try:
        with pytest.raises(SystemExit) as caught:
            main(["serve", "low", "--port", str(port)])
    finally:
        ended.set()
        presser.join()
    shown = capsys.readouterr()
    assert answered.is_set()
    assert (caught.value.code, shown.err) == (0, "")
    assert f"http://127.0.0.1:{port}  (stop with Ctrl-C)" in shown.out


@pytest.fixture(scope="module")
def address(app: FastAPI) -> Iterator[str]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def tab() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is on the PATH")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync"]
    with playwright.sync_playwright() as session:
        chromium = session.chromium.launch(executable_path=found, args=flags)
        yield chromium.new_page(viewport={"width": 1200, "height": 900})
        chromium.close()


def _soon(what: Any, wanted: Any) -> Any:
    """Wait until a reading of the page is what it should be."""
    deadline = time.monotonic() + 15
    while not wanted(found := what()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert wanted(found), found
    return found


# An image whose source is being replaced cannot be decoded: it is not there yet.
_COLOURS = """() => Promise.all([...document.querySelectorAll('#compared img')].map(
  async image => {
    if (!await image.decode().then(() => true, () => false)) return null;
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext('2d', {willReadFrequently: true});
    context.drawImage(image, 0, 0);
    const at = x => [...context.getImageData(x * canvas.width, 24, 1, 1).data].slice(0, 3);
    return [at(0.1), at(0.5), at(0.9)];
  }))"""


def _shown(tab: Any, wanted: Any) -> Any:
    """Wait until both sides' colours, at a tenth, the middle and nine tenths, are as wanted."""

    def is_there(found: Any) -> bool:
        return len(found) == 2 and None not in found and bool(wanted(*found))

    return _soon(lambda: tab.evaluate(_COLOURS), is_there)


def _reads(tab: Any, where: str, *words: str) -> str:
    """Wait until an element says all these words, and return all that it says."""
    return str(
        _soon(
            lambda: " ".join(tab.inner_text(where).split()),
            lambda text: all(word in text for word in words),
        )
    )


def test_the_page_compares_students_in_a_browser(address: str, tab: Any) -> None:
    said: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(address, wait_until="load")
    tab.wait_for_selector("#legend table")
    _reads(tab, "#legend", "–")
    # An image: two students, the legend, the areas, the slider.
    upload = {"name": "a.png", "mimeType": "image/png", "buffer": encoded(half_red())}
    tab.set_input_files("#drop input", upload)
    road, background = [127, 77, 64], [98, 80, 35]  # half opaque
    _shown(
        tab,
        lambda left, right: (
            np.allclose(left[1], road, atol=12) and np.allclose(right[1], background, atol=12)
        ),
    )
    words = _reads(tab, "#legend", "road 75.0 % 25.0 % 50.0 %", "<b>bold</b>")
    assert words.count(" ms") == 3
    _reads(tab, "#said", "64 × 48")
    assert tab.locator("#compared .inner, #compared .outer, #compared [role=slider]").count()
    picture = np.asarray(Image.open(io.BytesIO(tab.locator("#compared").screenshot())))
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 50
    # Opacity, and another student, without another upload.
    before = len(asked)
    number = "#opacity input[type=number]"
    tab.fill(number, "1")
    tab.press(number, "Tab")
    _shown(tab, lambda left, right: np.allclose(left[1], [128, 64, 128], atol=6))
    tab.click("#left input")
    tab.get_by_role("option", name="the image itself").click()
    _shown(tab, lambda left, right: np.allclose(left[1], [127, 90, 0], atol=12))
    assert asked[before:] == [url for url in asked[before:] if url.startswith("data:")]
    # A video: its frames.
    upload = {"name": "a.mp4", "mimeType": "video/mp4", "buffer": encoded_video()}
    tab.set_input_files("#drop input", upload)
    tab.wait_for_selector("#frame")
    _reads(tab, "#said", "8 frames")
    number = "#frame input[type=number]"
    tab.fill(number, "8")
    tab.press(number, "Tab")
    _shown(tab, lambda left, right: np.allclose(right[2], [128, 64, 128], atol=6))
    tab.click("#play")
    _soon(lambda: tab.input_value(number), lambda shown: shown not in ("", "8"))
    tab.click("#play")
    assert said == []
    hosts = {urlsplit(url).netloc for url in asked if not url.startswith(("data:", "blob:"))}
    assert hosts == {urlsplit(address).netloc}
    # What cannot be read is said, and the page goes on.
    tab.set_input_files("#drop input", {"name": "<i>.png", "mimeType": "image/png", "buffer": b"x"})
    _reads(tab, "#said [role=alert]", "<i>.png: it is not an image or video")
    _soon(lambda: len(said), lambda lines: lines == 1)  # the browser's own line of the 415
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
