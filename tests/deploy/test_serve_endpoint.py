"""The endpoint: right answers, clear refusals, nothing kept, and alive after anything."""

from __future__ import annotations

import asyncio
import base64
import io
import random
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

import spiritseg
from deploy.serving import COLOURS, Threshold, encoded, encoded_video, half_red

pytest.importorskip("fastapi", reason="the web extra is not installed")
from fastapi import FastAPI
from starlette.testclient import TestClient

from spiritseg.deploy.serve.endpoint import make_endpoint
from spiritseg.deploy.serve.students import Students, open_students
from spiritseg.deploy.serve.uploads import Limits
from spiritseg.errors import ConfigError

LIMITS = Limits(mebibytes=2, megapixels=0.5, seconds=4, frames=20, requests=2)

_FORM: dict[str, Any] = {  # of which it is not said how long it is
    "type": "http",
    "asgi": {"version": "3.0"},
    "method": "POST",
    "path": "/api/predict",
    "raw_path": b"/api/predict",
    "query_string": b"",
    "headers": [(b"content-type", b"multipart/form-data; boundary=x")],
}


@pytest.fixture
def students() -> Students:
    return Students({"low": Threshold(63), "high": Threshold(191, ("other", "lane"))})


@pytest.fixture
def app(students: Students) -> FastAPI:
    return make_endpoint(students, LIMITS)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def _send(client: TestClient, data: bytes, where: str = "predict", **words: str) -> Any:
    return client.post(f"/api/{where}", files={"file": ("x", data)}, params=words)


def test_a_mask_its_area_and_its_size(client: TestClient) -> None:
    pixels = half_red()
    found = _send(client, encoded(pixels), student="high", mask="1").json()
    truth = pixels[..., 0] > 191
    assert found["student"] == "high"
    assert found["classes"] == ["other", "lane"]
    assert found["size"] == [48, 64]
    assert found["area"] == pytest.approx({"other": 1 - truth.mean(), "lane": truth.mean()})
    assert found["latency_ms"] >= 0
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["mask"]))))
    assert np.array_equal(mask, truth)
    plain = _send(client, encoded(pixels)).json()
    assert plain["student"] == "low"
    assert "mask" not in plain


def test_a_real_student_answers_as_it_does_alone(student_folder: Path) -> None:
    students = open_students([student_folder, student_folder], threads=1)
    assert students.names == [student_folder.parent.name, f"{student_folder.parent.name} (2)"]
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    with TestClient(make_endpoint(students, LIMITS)) as client:
        found = _send(client, encoded(pixels), mask="true").json()
        said = client.get("/api/students").json()["students"]
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["mask"]))))
    assert (mask == spiritseg.load(student_folder)(pixels)).mean() > 0.999
    assert [one["classes"] for one in said] == [["background", "road", "kerb"]] * 2
    assert said[0]["params"] > 1000


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    return encoded(half_red(), "JPEG", exif=exif.tobytes(), quality=95)


KINDS = {
    "grey": encoded(Image.fromarray(half_red()[..., 0])),
    "palette": encoded(Image.fromarray(half_red()).quantize(64)),
    "alpha": encoded(Image.fromarray(half_red()).convert("RGBA")),
    "16-bit": encoded(Image.fromarray(half_red()[..., 0].astype(np.uint16) * 257)),
    "CMYK": encoded(Image.fromarray(half_red()).convert("CMYK"), "JPEG", quality=95),
    "WebP": encoded(half_red(), "WEBP", lossless=True),
    "TIFF": encoded(half_red(), "TIFF"),
    "BMP": encoded(half_red(), "BMP"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_unusual_images_are_read_as_they_look(client: TestClient, kind: str) -> None:
    answer = _send(client, KINDS[kind])
    assert answer.status_code == 200, answer.text
    assert answer.json()["size"] == [48, 64]
    assert answer.json()["area"]["road"] == pytest.approx(0.75, abs=0.04)


def test_a_turned_image_is_turned_back(client: TestClient) -> None:
    assert _send(client, _exif()).json()["size"] == [64, 48]


def _bomb() -> bytes:
    """A PNG of a few bytes that says it has 2.5 gigapixels."""
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    good = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    return good + struct.pack(">I", zlib.crc32(chunk)) + encoded(half_red())[33:]


@pytest.mark.parametrize(
    ("size", "megapixels", "said"),
    [((9_999_999, 1), 10, "65535"), ((1, 70_000), 10, "65535"), ((10_000, 3), 0.5, "counts as 64")],
)
def test_thin_images_count_as_what_a_network_computes(
    students: Students, size: tuple[int, int], megapixels: float, said: str
) -> None:
    data = encoded(Image.new("1", size))
    with TestClient(make_endpoint(students, Limits(megapixels=megapixels))) as client:
        for where in ("predict", "compare"):
            answer = _send(client, data, where)
            assert answer.status_code == 413, answer.text
            assert said in answer.json()["error"]
        assert _send(client, encoded(Image.new("1", (7_000, 3)))).status_code == 200


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
BAD = {
    "empty": (b"", 422, "empty"),
    "corrupt": (encoded(half_red())[:90], 422, "cannot read the upload"),
    "text": (b"hello", 415, "not an image or video"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "not an image"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "not an image"),
    "playlist": (PLAYLIST, 415, "not an image or video"),
    "bomb": (_bomb(), 413, "too many pixels"),
    "many pixels": (encoded(np.zeros((800, 800, 3), np.uint8)), 413, "0.5 megapixels"),
    "many bytes": (b"\xff\xd8\xff" + bytes(3 << 20), 413, "2 MiB"),
    "a little too many bytes": (b"\xff\xd8\xff" + bytes(2 << 20), 413, "2 MiB"),
    "video": (encoded_video(2), 415, "expected an image"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_used_is_refused_and_said_why(client: TestClient, kind: str) -> None:
    data, status, said = BAD[kind]
    answer = _send(client, data)
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]
    assert "Traceback" not in answer.text
    assert client.get("/api/health").json()["uploads"] == 0


def test_forms_that_are_none(client: TestClient) -> None:
    assert client.post("/api/predict").status_code == 422
    assert client.post("/api/predict", data={"file": "words"}).status_code == 422
    broken = client.post(
        "/api/predict",
        content=b"--x\r\nnonsense",
        headers={"content-type": "multipart/form-data; boundary=x"},
    )
    assert broken.status_code in (400, 422)
    unknown = _send(client, encoded(half_red()), student="lwo")
    assert unknown.status_code == 404
    assert "Did you mean low" in unknown.json()["error"]
    assert client.get("/api/predict").status_code == 405
    assert client.get("/api/nothing").json() == {"error": "Not Found"}


def test_a_body_without_a_length_is_stopped(app: FastAPI) -> None:
    head = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
    taken = 0
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 1
        body = head if taken == 1 else bytes(1 << 20)
        return {"type": "http.request", "body": body, "more_body": True}  # without an end

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(_FORM, receive, send))
    assert sent[0]["status"] == 413
    assert b"2 MiB" in sent[1]["body"]
    assert taken == 4  # the head, 2 MiB, and the one that is too many


def test_students_are_compared_on_an_image(client: TestClient) -> None:
    found = _send(client, encoded(half_red()), "compare").json()
    assert found["size"] == [48, 64]
    (frame,) = found["frames"]
    assert frame["area"]["low"]["road"] == pytest.approx(0.75, abs=0.02)
    assert frame["area"]["high"]["lane"] == pytest.approx(0.25, abs=0.02)
    data = base64.b64decode(frame["masks"]["high"].removeprefix("data:image/png;base64,"))
    mask = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(mask, np.array(COLOURS, np.uint8)[(half_red()[..., 0] > 191) * 1])
    assert frame["image"].startswith("data:image/jpeg;base64,")


def test_large_images_are_shown_smaller(students: Students) -> None:
    with TestClient(make_endpoint(students, Limits())) as client:
        found = _send(client, encoded(half_red(1000, 2000)), "compare").json()
    assert found["size"] == [1000, 2000]
    data = found["frames"][0]["masks"]["low"].removeprefix("data:image/png;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (960, 480)


@pytest.mark.parametrize("kind", ["mp4", "matroska", "avi", "mpegts"])
def test_students_are_compared_on_a_video(client: TestClient, kind: str) -> None:
    found = _send(client, encoded_video(8, 4, kind), "compare").json()
    roads = [frame["area"]["low"]["road"] for frame in found["frames"]]
    assert roads == pytest.approx([k / 7 for k in range(8)], abs=0.03)
    times = [frame["time"] for frame in found["frames"]]
    assert np.diff(times) == pytest.approx(0.25, abs=0.01)


def test_a_video_whose_clock_has_run_before_it_starts_at_0(client: TestClient) -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number in range(8):
            pixels = np.full((48, 64, 3), 255 * (number % 2), np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = 160 + number, Fraction(1, 4)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(io.BytesIO(buffer.getvalue()), "r") as source:
        assert (next(source.decode(video=0)).time or 0) >= 40
    answer = _send(client, buffer.getvalue(), "compare")
    assert answer.status_code == 200, answer.text
    frames = answer.json()["frames"]
    assert [frame["time"] for frame in frames] == pytest.approx([k / 4 for k in range(8)], abs=1e-3)
    roads = [frame["area"]["low"]["road"] for frame in frames]
    assert roads == pytest.approx([k % 2 for k in range(8)], abs=0.03)


def test_frames_of_a_video_are_evenly_left_out(students: Students) -> None:
    limits = Limits(seconds=4, frames=5)
    with TestClient(make_endpoint(students, limits)) as client:
        found = _send(client, encoded_video(40, 10), "compare").json()
    times = [frame["time"] for frame in found["frames"]]
    assert times == pytest.approx([0, 0.8, 1.6, 2.4, 3.2], abs=0.11)


def test_videos_that_cannot_be_used(client: TestClient, students: Students) -> None:
    whole = encoded_video(8)
    long = _send(client, encoded_video(40), "compare")
    assert long.status_code == 413
    assert "4 seconds" in long.json()["error"]
    short = _send(client, whole[: len(whole) // 2], "compare")  # its index is at the end
    assert short.status_code == 422
    assert "as a video" in short.json()["error"]
    hidden = _send(client, b"\0\0\0\x18ftyp" + PLAYLIST, "compare")
    assert hidden.status_code == 422
    with TestClient(make_endpoint(students, Limits(megapixels=0.001))) as small:
        assert _send(small, whole, "compare").status_code == 413


def test_nothing_is_kept_and_nothing_touches_the_disk(
    client: TestClient, app: FastAPI, tmp_path: Path
) -> None:
    on_disk: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path))
        patch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda file: on_disk.append(file))
        noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
        assert len(encoded(noise)) > 1 << 20  # beyond what a form keeps in memory
        assert _send(client, encoded(noise)).status_code == 200
        assert _send(client, encoded(noise), "compare").status_code == 200
        assert _send(client, encoded_video(), "compare").status_code == 200
        for data, status, _ in BAD.values():
            assert _send(client, data).status_code == status
        asyncio.run(_hang_up(app))
        assert list(tmp_path.iterdir()) == []
    assert on_disk == []
    assert client.get("/api/health").json()["uploads"] == 0


async def _hang_up(app: FastAPI) -> None:
    """Send half an upload, and go."""
    head = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": head + bytes(3 << 19), "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: object) -> None: ...

    await app(_FORM, receive, send)


def test_an_upload_that_does_not_arrive_is_given_up(students: Students) -> None:
    app = make_endpoint(students, Limits(patience_s=0.2))

    async def stall() -> list[Any]:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(30)
            raise AssertionError

        async def send(message: Any) -> None:
            sent.append(message)

        await app(_FORM, receive, send)
        return sent

    assert asyncio.run(stall())[0]["status"] == 408


def test_few_are_inside_and_one_runs(client: TestClient, students: Students) -> None:
    slow = students.runtimes["low"]
    assert isinstance(slow, Threshold)
    slow.go.clear()
    codes: list[int] = []
    data = encoded(half_red())
    threads = [
        threading.Thread(target=lambda: codes.append(_send(client, data).status_code))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while client.get("/api/health").json()["uploads"] < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    busy = _send(client, data)
    slow.go.set()
    for thread in threads:
        thread.join(20)
    assert busy.status_code == 503
    assert busy.headers["retry-after"] == "5"
    assert codes == [200, 200]
    assert slow.most == 1
    assert _send(client, data).status_code == 200


def test_a_failing_student_does_not_end_the_server(
    client: TestClient, students: Students, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(images: object) -> None:
        raise RuntimeError("secret /a/path")

    with monkeypatch.context() as patch:
        patch.setattr(students.runtimes["low"], "forward", fail)
        answer = _send(client, encoded(half_red()))
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert _send(client, encoded(half_red())).status_code == 200


def test_limits_are_above_zero() -> None:
    with pytest.raises(ConfigError, match="seconds above 0"):
        Limits(seconds=0)


def _mutated(seeds: list[bytes], draw: random.Random) -> bytes:
    data = bytearray(draw.choice(seeds))
    kind = draw.randrange(5)
    if kind == 0:
        return draw.randbytes(draw.randrange(2000))
    if kind == 1:
        return bytes(data[: draw.randrange(len(data))])
    early = draw.random() < 0.7  # headers, mostly
    for _ in range(draw.randrange(1, 12)):
        data[draw.randrange(min(len(data), 80 if early else len(data)))] = draw.randrange(256)
    if kind == 2:
        at = draw.randrange(len(data))
        data[at:at] = draw.randbytes(draw.randrange(200))
    return bytes(data)


@pytest.mark.filterwarnings("ignore")  # as a server runs: decoders go on after a warning
def test_a_thousand_mutated_uploads(client: TestClient) -> None:
    seeds = [*KINDS.values(), _exif(), _bomb(), encoded(half_red(), "JPEG", progressive=True)]
    seeds += [encoded_video(2), encoded_video(2, kind="matroska")]
    draw = random.Random(0)
    codes: dict[int, int] = {}
    for number in range(1000):
        data = _mutated(seeds, draw)
        answer = _send(client, data, "compare" if number % 4 == 0 else "predict")
        codes[answer.status_code] = codes.get(answer.status_code, 0) + 1
        assert answer.status_code in (200, 413, 415, 422), (number, answer.text)
        assert ("error" in answer.json()) == (answer.status_code != 200)
    assert codes[200] > 50, codes
    assert codes[422] > 50, codes
    found = _send(client, encoded(half_red())).json()
    assert found["area"]["road"] == pytest.approx(0.75, abs=0.02)
    assert client.get("/api/health").json()["uploads"] == 0


def test_the_first_pass_at_a_size_is_not_the_one_that_is_timed(
    students: Students, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    runtime = students.get("low")
    masks, clock = runtime.masks, time.perf_counter

    def counted(images: Any) -> Any:
        said.append("pass")
        return masks(images)

    def read() -> float:
        said.append("clock")
        return clock()

    monkeypatch.setattr(runtime, "masks", counted)
    monkeypatch.setattr(time, "perf_counter", read)
    timed = ["clock", "pass", "clock"]
    for size, before in (((4, 6), ["pass"]), ((4, 6), []), ((6, 4), ["pass"])):
        said.clear()
        students.answer("low", np.zeros((*size, 3), np.uint8))
        assert said == before + timed
