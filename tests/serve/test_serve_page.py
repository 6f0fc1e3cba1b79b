"""The page in a real browser."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from serve.serving import COLOURS, encoded, half_red, running, thresholds

pytest.importorskip("gradio", reason="the web extra is not installed")
from spiritseg.serve import make_app, upload_folder
from spiritseg.serve.page import Students


@pytest.fixture
def address() -> Iterator[str]:
    students = thresholds()
    students["low"].classes = ("background", "<b>road</b>")
    with upload_folder() as folder, running(make_app(Students(students), folder)) as (host, port):
        yield f"http://{host}:{port}/"


@pytest.fixture
def tab() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is on the PATH")
    with playwright.sync_playwright() as session:
        chromium = session.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium.new_page(viewport={"width": 420, "height": 900})
        chromium.close()


def _colours(tab: Any, where: str) -> Any:
    """Return the middle row of the last picture in an element, as a browser loads it."""
    url = tab.locator(f"{where} img").last.get_attribute("src")
    with Image.open(io.BytesIO(tab.request.get(url).body())) as picture:
        return np.asarray(picture.convert("RGB"))[picture.height // 2]


def test_the_page(address: str, tab: Any, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    expect.set_options(timeout=30_000)
    wrong: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(address)
    # An image.
    upload = {"name": "a.png", "mimeType": "image/png", "buffer": encoded(half_red())}
    tab.set_input_files("input[type=file]", upload)
    expect(tab.locator("#text")).to_contain_text("64 × 48 pixels")
    expect(tab.locator("#area")).to_contain_text("<b>road</b>")
    expect(tab.locator("#area")).to_contain_text("75.0 %")
    expect(tab.locator("#overlay img")).to_have_count(2)
    red = half_red()[0].astype(float)
    blended = (red + np.array(COLOURS)[(red[:, 0] > 63) * 1]) / 2
    assert np.abs(_colours(tab, "#overlay") - blended).mean() < 6
    # The mask.
    with tab.expect_download() as download:
        tab.get_by_text("Download the mask").click()
    download.value.save_as(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as mask:
        assert np.array_equal(np.asarray(mask), half_red()[..., 0] > 63)
    # Another student; then an upload that is not an image.
    tab.get_by_label("high").check()
    expect(tab.locator("#area")).to_contain_text("25.0 %")
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    tab.get_by_label("Clear").first.click()
    expect(tab.locator("#area")).not_to_contain_text("25.0 %")
    tab.set_input_files("input[type=file]", upload | {"buffer": b"x"})
    expect(tab.locator("#text")).to_contain_text("Not segmented: the upload is not a JPEG")
    assert wrong == []
    hosts = {urlsplit(url).netloc for url in asked if not url.startswith(("data:", "blob:"))}
    assert hosts == {urlsplit(address).netloc}
