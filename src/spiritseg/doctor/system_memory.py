"""Memory of this process and machine: the peak since a reset, and what is free."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import torch

__all__ = ["free_bytes", "peak_bytes", "reset_peak"]

_PROCESS, _MACHINE = Path("/proc/self/status"), Path("/proc/meminfo")


def reset_peak(device: torch.device) -> None:
    """Let `peak_bytes` start at the memory in use; where the system lacks that, nothing happens."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # of this process on any device
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM


def peak_bytes(device: torch.device) -> int:
    """Return the peak bytes of this process on the GPU, or for the CPU its resident memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if peak := _field(_PROCESS, "VmHWM"):
        return peak
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_bytes(device: torch.device) -> int:
    """Return the bytes that this process can have, those in use included; 0 if not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)
    available = _field(_MACHINE, "MemAvailable")
    return available + _field(_PROCESS, "VmRSS") if available else 0


def _field(path: Path, name: str) -> int:
    """Return the bytes of a line ``name: n kB``; 0 where there is none."""
    with suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return 0
