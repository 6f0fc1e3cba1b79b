"""Several passes at once: in order, really at once, and never a group lost or hung."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritseg.deploy.pipeline import batches, segmented
from spiritseg.deploy.predict import predict
from spiritseg.export.export import ExportReport
from spiritseg.export.onnx import OnnxRuntime
from spiritseg.export.opening import open_runtime
from spiritseg.pixels import Pixels, read_pixels


def _pictures(sizes: list[int]) -> list[tuple[int, Pixels]]:
    return [(n, np.full((size, 2, 3), n, np.uint8)) for n, size in enumerate(sizes)]


@given(st.lists(st.integers(1, 3), max_size=12), st.integers(1, 4), st.integers(1, 3))
def test_every_image_comes_out_once_and_in_order(sizes: list[int], most: int, streams: int) -> None:
    def masks(images: Pixels) -> Pixels:
        assert len(images) <= most
        return np.ascontiguousarray(images[..., 0])

    found = list(segmented(masks, batches(_pictures(sizes), most), streams))
    assert [key for key, _, _ in found] == list(range(len(sizes)))
    for key, image, mask in found:
        assert image.shape == (sizes[key], 2, 3)
        assert np.array_equal(mask, np.full((sizes[key], 2), key))


def test_the_passes_run_at_once_and_a_slow_one_keeps_its_place() -> None:
    both = threading.Barrier(2, timeout=20)

    def masks(images: Pixels) -> Pixels:
        number = int(images[0, 0, 0, 0])
        if number < 2:
            both.wait()  # passed only if two are inside
        if number == 0:
            time.sleep(0.2)
        return np.ascontiguousarray(images[..., 0])

    found = segmented(masks, batches(_pictures([1] * 5), 1), streams=2)
    assert [key for key, _, _ in found] == [0, 1, 2, 3, 4]


def test_no_more_is_read_than_the_network_needs() -> None:
    read: list[int] = []

    def pictures() -> Iterator[tuple[int, Pixels]]:
        for number, picture in _pictures([1] * 50):
            read.append(number)
            yield number, picture

    found = segmented(lambda images: images[..., 0], batches(pictures(), 1), streams=2)
    next(found)
    assert len(read) == 3
    found.close()  # type: ignore[attr-defined]
    assert len(read) == 3


def test_an_error_of_a_pass_is_raised_here() -> None:
    def masks(images: Pixels) -> Pixels:
        if images[0, 0, 0, 0] == 2:
            raise ValueError("the third image")
        return np.ascontiguousarray(images[..., 0])

    found = segmented(masks, batches(_pictures([1] * 9), 1), streams=2)
    assert next(found)[0] == 0
    with pytest.raises(ValueError, match="the third image"):
        list(found)


@pytest.mark.parametrize(
    ("cores", "threads", "streams", "wanted"),
    [
        (8, None, 1, (1, 0)),  # 0: the engine's own choice
        (8, 3, 1, (1, 3)),
        (8, None, 0, (4, 2)),
        (6, None, 0, (4, 1)),
        (2, None, 0, (2, 1)),
        (1, None, 0, (1, 1)),
        (8, None, 3, (3, 2)),
        (1, None, 3, (3, 1)),
        (8, 1, 0, (1, 1)),
        (8, 2, 0, (2, 1)),
        (8, 4, 0, (4, 1)),
        (8, 16, 0, (4, 4)),
        (2, 4, 0, (2, 2)),
        (8, 7, 3, (3, 2)),
        (2, 3, 3, (3, 1)),
    ],
)
def test_streams_share_the_threads(
    exported: ExportReport,
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    threads: int | None,
    streams: int,
    wanted: tuple[int, int],
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    runtime = open_runtime(exported.paths[0], threads, streams=streams)
    assert isinstance(runtime, OnnxRuntime)
    each = runtime._session.get_session_options().intra_op_num_threads
    assert (runtime.streams, each) == wanted
    if threads is not None:
        assert runtime.streams * each <= threads


def test_masks_do_not_depend_on_the_streams(
    exported: ExportReport, pictures: Path, tmp_path: Path
) -> None:
    path = exported.paths[0]
    for streams in (1, 3):
        predict(path, pictures, tmp_path / str(streams), streams=streams, progress=False)
    one, three = (sorted((tmp_path / name).rglob("*.png")) for name in ("1", "3"))
    assert len(one) == len(three) == 6
    for a, b in zip(one, three, strict=True):
        assert np.array_equal(read_pixels(a), read_pixels(b))
