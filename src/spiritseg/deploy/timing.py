"""What a machine can do: works timed in turn, matrix products to measure by, 8-bit instructions."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["in_turn", "int8_instructions", "matrix_products", "product_rate"]

_WARM_UP = 2


def in_turn(
    works: Mapping[str, Callable[[], object]], rounds: int, budget_s: float
) -> dict[str, list[float]]:
    """Time works in turn, in an order that rotates.

    Args:
        works: by name.
        rounds: of each; fewer where the budget is used up, but 3 at least.
        budget_s: seconds in all.

    Returns:
        The times of each in ms, round by round.
    """
    for work in works.values():
        for _ in range(_WARM_UP):
            work()
    times: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    started = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - started > budget_s:
            break
        for name in names:
            before = time.perf_counter()
            works[name]()
            times[name].append((time.perf_counter() - before) * 1e3)
        names.append(names.pop(0))
    return times


def matrix_products(threads: int, side: int = 2048) -> dict[str, Callable[[], object]]:
    """Return a float32 matrix product of each library that is there; `product_rate` reads them.

    Args:
        threads: of each; torch keeps them.
        side: of the matrices.

    Returns:
        What to time, by library: torch, and onnxruntime where it is installed.
    """
    import torch

    torch.set_num_threads(threads)
    values = np.random.default_rng(0).random((side, side), dtype=np.float32)
    tensor = torch.from_numpy(values)
    works: dict[str, Callable[[], object]] = {"torch": lambda: torch.mm(tensor, tensor)}
    with suppress(ImportError):
        works["onnxruntime"] = _onnxruntime_product(values, threads)
    return works


def product_rate(times_ms: Sequence[float], side: int = 2048) -> float:
    """Return the rate of the fastest of a matrix product's passes.

    Args:
        times_ms: of the passes.
        side: of the matrices; a product takes 2 side^3 FLOPs.

    Returns:
        GFLOP/s.
    """
    return 2 * side**3 / min(times_ms) / 1e6


def int8_instructions() -> list[str]:
    """Name the processor's instructions for 8-bit products.

    Returns:
        As Linux names them; empty where it has none known.
    """
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return []
    return sorted(flags & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})


def _onnxruntime_product(values: NDArray[np.float32], threads: int) -> Callable[[], object]:
    import onnx
    import onnxruntime

    kind, shape = onnx.TensorProto.FLOAT, list(values.shape)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["a", "b"], ["c"])],
        "product",
        [onnx.helper.make_tensor_value_info("a", kind, shape)],
        [onnx.helper.make_tensor_value_info("c", kind, shape)],
        [onnx.numpy_helper.from_array(values, "b")],
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"a": values})
