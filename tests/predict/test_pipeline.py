"""Several calls at once: in order, really at once, and nothing lost or read too early."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritseg.export.onnx import _shared
from spiritseg.images import Pixels
from spiritseg.predict.predict import mapped, segmented


@given(st.lists(st.integers(1, 3), max_size=12), st.integers(1, 4), st.integers(1, 3))
def test_every_image_comes_out_once_and_in_order(sizes: list[int], most: int, streams: int) -> None:
    def masks(images: Pixels) -> Pixels:
        assert len(images) <= most
        return np.ascontiguousarray(images[..., 0])

    pictures = [(n, np.full((size, 2, 3), n, np.uint8)) for n, size in enumerate(sizes)]
    found = list(segmented(masks, pictures, most, streams))
    assert [key for key, _, _ in found] == list(range(len(sizes)))
    for key, image, mask in found:
        assert image.shape == (sizes[key], 2, 3)
        assert np.array_equal(mask, np.full((sizes[key], 2), key))


def test_calls_run_at_once_and_a_slow_one_keeps_its_place() -> None:
    both = threading.Barrier(2, timeout=20)

    def slow(number: int) -> int:
        if number < 2:
            both.wait()  # passed only if two are inside
        time.sleep(0.1 if number == 0 else 0)
        return number

    assert list(mapped(slow, range(5), workers=2, ahead=2)) == [0, 1, 2, 3, 4]


def test_no_more_is_read_than_needed() -> None:
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(50):
            read.append(number)
            yield number

    found = mapped(str, numbers(), workers=2, ahead=2)
    assert next(found) == "0"
    found.close()  # type: ignore[attr-defined]
    assert read == [0, 1, 2]


def test_an_exception_is_raised_in_the_place_of_its_result() -> None:
    found = mapped(lambda number: 6 // (2 - number), range(9), workers=2, ahead=2)
    assert [next(found), next(found)] == [3, 6]
    with pytest.raises(ZeroDivisionError):
        next(found)


@pytest.mark.parametrize(
    ("cores", "threads", "streams", "wanted"),
    [
        (8, None, 1, (1, None)),  # None: the engine's own choice
        (8, 3, 1, (1, 3)),
        (8, None, 0, (4, 2)),
        (2, None, 0, (2, 1)),
        (1, None, 3, (3, 1)),
        (8, 2, 0, (2, 1)),
        (8, 16, 0, (4, 4)),
        (8, 7, 3, (3, 2)),
    ],
)
def test_streams_share_the_threads(
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    threads: int | None,
    streams: int,
    wanted: tuple[int, int | None],
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert _shared(streams, threads) == wanted
