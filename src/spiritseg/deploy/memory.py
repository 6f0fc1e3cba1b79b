"""Peak memory of a student in a fresh process: ``python -m spiritseg.deploy.memory FILE H W``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = ["peak_memory_mib"]


def peak_memory_mib(path: Path, size: tuple[int, int], threads: int) -> float | None:
    """Measure what a student adds to a process that has its engine loaded.

    Args:
        path: what `open_runtime` opens.
        size: (H, W) of the image.
        threads: of the network.

    Returns:
        MiB at the peak, above the engine alone; None where the system does not tell.
    """
    words = [str(path), str(size[0]), str(size[1]), str(threads)]
    command = [sys.executable, "-m", "spiritseg.deploy.memory", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return float(done.stdout)
    except ValueError:
        return None


def _status_mib(field: str) -> float:
    # Not getrusage: its peak is inherited from the process that started this one.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(field)


def _main() -> None:
    import numpy as np

    from spiritseg.deploy.opening import open_runtime

    path = Path(sys.argv[1])
    height, width, threads = map(int, sys.argv[2:5])
    if path.suffix == ".onnx":
        import onnxruntime  # noqa: F401
    elif path.suffix == ".xml":
        import openvino  # noqa: F401
    else:
        import spiritseg.deploy.torch_runtime  # noqa: F401
    before = _status_mib("VmRSS")
    runtime = open_runtime(path, threads, trust=True)
    image = np.zeros((1, height, width, 3), np.uint8)
    for _ in range(2):
        runtime.masks(image)
    print(_status_mib("VmHWM") - before)


if __name__ == "__main__":
    _main()
