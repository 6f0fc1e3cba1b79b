"""The API: right answers, clear refusals, and a server that survives anything."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import spiritseg
from serve.serving import Threshold, asked, encoded, half_red, running, segmented, thresholds
from spiritseg.errors import ConfigError
from spiritseg.export.export import ExportReport

pytest.importorskip("gradio", reason="the web extra is not installed")
from starlette.testclient import TestClient

from spiritseg.serve import make_app, upload_folder
from spiritseg.serve.page import Students, open_students

MIB, MEGAPIXELS = 2, 0.5


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with upload_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def students() -> Students:
    return Students(thresholds(), MIB, MEGAPIXELS)


@pytest.fixture(scope="module")
def client(students: Students, folder: Path) -> Iterator[TestClient]:
    app = make_app(students, folder)
    with TestClient(app, "http://127.0.0.1:7860", raise_server_exceptions=False) as client:
        yield client


def test_an_answer(client: TestClient) -> None:
    pixels = half_red()
    truth = pixels[..., 0] > 191
    found = segmented(client, encoded(pixels), "high", True)
    assert found.pop("latency_ms") >= 0
    mask = Image.open(io.BytesIO(base64.b64decode(found.pop("mask"))))
    assert np.array_equal(np.asarray(mask), truth)
    area = {"background": 1 - truth.mean(), "road": truth.mean()}
    assert found.pop("area") == pytest.approx(area)
    assert found == {"student": "high", "classes": ["background", "road"], "size": [48, 64]}
    assert "mask" not in segmented(client, encoded(pixels))


def test_a_real_student_through_gradio_client(student_folder: Path, tmp_path: Path) -> None:
    gradio_client = pytest.importorskip("gradio_client")
    runtimes = open_students([student_folder, student_folder], 1, "cpu", False)
    run = student_folder.parent.name
    assert list(runtimes) == [run, f"{run} (2)"]
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(encoded(pixels))
    with upload_folder() as folder, running(make_app(Students(runtimes), folder)) as (host, port):
        client = gradio_client.Client(f"http://{host}:{port}", verbose=False)
        image = gradio_client.handle_file(str(tmp_path / "a.png"))
        found = client.predict(image, mask=True, api_name="/segment")
        client.close()
    assert found["student"] == run
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["mask"]))))
    assert (mask == spiritseg.load(student_folder)(pixels)).mean() > 0.999


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    return encoded(half_red(), "JPEG", exif=exif.tobytes(), quality=95)


RED = Image.fromarray(half_red())
KINDS = {
    "grey": encoded(RED.getchannel(0)),
    "palette": encoded(RED.quantize(64)),
    "alpha": encoded(RED.convert("RGBA")),
    "16-bit": encoded(Image.fromarray(half_red()[..., 0].astype(np.uint16) * 257)),
    "CMYK": encoded(RED.convert("CMYK"), "JPEG", quality=95),
    "WebP": encoded(RED, "WEBP", lossless=True),
    "TIFF": encoded(RED, "TIFF"),
    "BMP": encoded(RED, "BMP"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_unusual_images_are_read_as_they_look(client: TestClient, kind: str) -> None:
    found = segmented(client, KINDS[kind])
    assert found["size"] == [48, 64]
    assert found["area"]["road"] == pytest.approx(0.75, abs=0.04)


def test_a_turned_image_is_turned_back(client: TestClient) -> None:
    assert segmented(client, _turned())["size"] == [64, 48]


def _bomb() -> bytes:
    """A PNG of a few bytes that claims 2.5 gigapixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    return head + struct.pack(">I", zlib.crc32(chunk)) + encoded(half_red())[33:]


BAD = {
    "empty": (b"", "the file is empty"),
    "corrupt": (encoded(half_red())[:90], "cannot read the upload"),
    "text": (b"hello", "not a JPEG, PNG"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a JPEG"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a JPEG"),
    "bomb": (_bomb(), "too many pixels"),
    "many pixels": (encoded(np.zeros((800, 800, 3), np.uint8)), "0.5 megapixels"),
    "too thin": (encoded(Image.new("1", (10_000, 3))), "counts as 64"),
    "too long": (encoded(Image.new("1", (70_000, 1))), "65535"),
}


@pytest.mark.parametrize("kind", BAD)
def test_an_unusable_image_is_refused_with_the_reason(client: TestClient, kind: str) -> None:
    data, reason = BAD[kind]
    assert reason in segmented(client, data)


def test_an_upload_has_a_largest_size(client: TestClient) -> None:
    whole = b"\xff\xd8\xff" + bytes(MIB << 20)
    answer = client.post("/gradio_api/upload", files={"files": ("a.jpg", whole)})
    assert answer.status_code == 413
    taken = []

    def pieces() -> Iterator[bytes]:  # of a body without a length
        yield b'--x\r\ncontent-disposition: form-data; name="files"; filename="a"\r\n\r\n'
        for _ in range(9):
            taken.append(1 << 20)
            yield bytes(1 << 20)

    kind = {"content-type": "multipart/form-data; boundary=x"}
    answer = client.post("/gradio_api/upload", content=pieces(), headers=kind)
    assert answer.status_code == 413
    words = {"data": [{"path": "x" * (1 << 20)}, "low", False]}
    assert client.post("/gradio_api/run/segment", json=words).status_code == 413


META = {"meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    "image",
    [
        {"path": "/etc/passwd"},
        {"path": "/etc/passwd"} | META,
        {"path": "{folder}/../../etc/passwd"},
        {"path": "{folder}/../../etc/passwd"} | META,
        {"path": "http://127.0.0.1:7860/"} | META,
        {"path": "HTTPS://example.org/a.png"} | META,
        {"path": "/etc/pass\0wd"},
        {"path": 3},
        "/etc/passwd",
        None,
    ],
)
def test_only_uploads_are_read(client: TestClient, folder: Path, image: Any) -> None:
    before = sorted(folder.rglob("*"))
    found = asked(client, json.loads(json.dumps(image).replace("{folder}", str(folder))))
    assert found is None or "expected an upload" in found
    assert sorted(folder.rglob("*")) == before


def test_an_unknown_student(client: TestClient) -> None:
    assert "Did you mean low" in segmented(client, encoded(half_red()), "lwo")


def test_uploads_are_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    with upload_folder() as folder:
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
        (folder / "hash").mkdir()
        (folder / "hash" / "old.png").write_bytes(b"")
        os.utime(folder / "hash" / "old.png", (0, 0))
        (folder / "new.png").write_bytes(b"")
        with TestClient(make_app(Students(thresholds()), folder), "http://localhost") as client:
            assert client.get("/config").status_code == 200
            deadline = time.monotonic() + 20
            while (folder / "hash" / "old.png").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
        assert [path.name for path in folder.rglob("*.png")] == ["new.png"]
    assert not folder.exists()
    assert "GRADIO_TEMP_DIR" not in os.environ


def test_a_full_folder_takes_no_upload(client: TestClient, folder: Path) -> None:
    with (folder / "sparse").open("wb") as sparse:
        sparse.truncate(33 * MIB << 20)
    answer = client.post("/gradio_api/upload", files={"files": ("a.png", encoded(half_red()))})
    (folder / "sparse").unlink()
    assert answer.status_code == 503
    assert segmented(client, encoded(half_red()))["size"] == [48, 64]


def test_one_image_at_a_time(client: TestClient, students: Students) -> None:
    slow: Any = students.runtimes["low"]
    slow.go.clear()
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(segmented(client, encoded(half_red()))))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while not slow.inside and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)  # for the others to come in, if they could
    slow.go.set()
    for thread in threads:
        thread.join(20)
    assert [one["size"] for one in found] == [[48, 64]] * 3
    assert slow.most_inside == 1


def test_a_failing_student_does_not_end_the_server(
    client: TestClient, students: Students, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(images: object) -> None:
        raise RuntimeError("secret /a/path")

    with monkeypatch.context() as patch:
        patch.setattr(students.runtimes["low"], "masks", fail)
        assert segmented(client, encoded(half_red())) is None
    assert segmented(client, encoded(half_red()))["size"] == [48, 64]


def test_passes_of_an_image(tmp_path: Path) -> None:
    """The first at a new size is not timed; a small one follows a large image."""
    student = Threshold(63)
    students = Students({"low": student})  # type: ignore[dict-item]
    passes = []
    for number, size in enumerate([(48, 64), (48, 64), (2000, 2100), (48, 64)]):
        student.calls = 0
        (tmp_path / f"{number}.bmp").write_bytes(encoded(half_red(*size), "BMP"))
        students.segment(tmp_path / f"{number}.bmp", "low")
        passes.append(student.calls)
    assert passes == [2, 1, 3, 2]


@pytest.mark.parametrize(
    ("runtimes", "limits", "reason"),
    [
        ({}, (), "at least one student"),
        (thresholds(), (0,), "--max-mib above 0"),
        (thresholds(), (1, -1), "--max-megapixels above 0"),
    ],
)
def test_students_that_cannot_be_served(runtimes: Any, limits: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Students(runtimes, *limits)


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
def test_mutated_uploads(client: TestClient) -> None:
    seeds = [*KINDS.values(), _turned(), _bomb(), encoded(half_red(), "JPEG", progressive=True)]
    count, draw = 80, random.Random(0)
    answers = [segmented(client, _mutated(seeds, draw)) for _ in range(count)]
    refused = [one for one in answers if isinstance(one, str)]
    assert len(refused) > count / 5
    assert sum(isinstance(one, dict) for one in answers) == count - len(refused) > count / 20
    found = segmented(client, encoded(half_red()))
    assert found["area"]["road"] == pytest.approx(0.75, abs=0.02)


HELD = """
import json, pathlib, sys
import numpy as np
from PIL import Image
from spiritseg.serve.page import Students, open_students

def mib(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

students = Students(open_students([sys.argv[1]], 1, "cpu", False))
file = pathlib.Path(sys.argv[2])
held = []
for size in ((64, 80), (2100, 2100), (80, 60000)):
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(file)
    students.segment(file, students.names[0])
    held.append(mib("VmRSS"))
print(json.dumps([*held, mib("VmHWM")]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_the_memory_of_a_large_image_is_given_back(exported: ExportReport, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HELD, str(exported.paths[0]), str(tmp_path / "a.bmp")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, *held, peak = json.loads(done.stdout)
    assert peak > before + 150  # MiB
    assert max(held) < before + 80
