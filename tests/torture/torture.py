"""Stop, garble and starve one small run again and again: `make torture`.

    python tests/torture/torture.py --rounds 100 --seed 0

Each round begins with the finished run or with none, does one bad thing to it at a random moment,
and starts the same command again until it has finished. It must end in the weights of a run that
nothing happened to; what goes wrong on the way must be one clear error, never a traceback.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

RECIPE = """
extends: esd
target: {dataset: scenes, scenes: {train: 6, val: 2, test: 2, size: [72, 96]}}
proximity: {dataset: scenes, scenes: {train: 8, val: 2, size: [72, 96]}}
input: {crop: 64}
networks:
  teacher: {extractor: {weights: random}}
  student: {extractor: {name: separable, base: teacher, args: {widths: [8, 8, 8, 8]}}}
stages:
  mimicry: {max_steps: 20, batch_size: 2, num_views: 2}
  head: {max_steps: 10, batch_size: 2, num_views: 2}
  all: {max_steps: 10, batch_size: 2, ema_decay: 0.9}
evaluation: {latency: false, pictures: 0}
trainer: {progress: false, checkpoint_every_s: 0, accelerator: cpu}
"""
KINDS = ("kill", "term", "int", "full", "garble", "cut", "remove")
TRIES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tiny.yaml").write_text(RECIPE)
        started = time.monotonic()
        done = _start(folder, folder / "whole")
        assert done.wait() == 0, done.communicate()
        seconds, expected = time.monotonic() - started, _digest(folder / "whole")
        counts: Counter[str] = Counter()
        for number in range(options.rounds):
            kind = KINDS[number % len(KINDS)]
            counts[kind] += 1
            fault = one_round(folder, kind, draw, seconds, expected)
            print(f"{number + 1}/{options.rounds} {kind}: {fault or 'as if nothing happened'}")
            if fault:
                sys.exit(1)
    print(", ".join(f"{kind} {count}" for kind, count in counts.items()))


def one_round(folder: Path, kind: str, draw: random.Random, seconds: float, expected: str) -> str:
    """Do one bad thing; return what is wrong with how the run got over it, or nothing."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    if kind in ("garble", "cut", "remove"):
        shutil.copytree(folder / "whole", run)
        what = _damage(run, kind, draw)
    else:
        what = kind
        process = _start(folder, run, full=draw.randrange(1, 200_000) if kind == "full" else 0)
        if kind != "full":
            time.sleep(draw.uniform(0, seconds))
            sent = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}[kind]
            process.send_signal(sent)
        if fault := _fault(process, (0, 2, 130, 143, -9)):
            return f"{what}: {fault}"
    for _ in range(TRIES):
        process = _start(folder, run)
        if fault := _fault(process, (0, 2)):
            return f"after {what}: {fault}"
        if process.returncode == 0:
            found = _digest(run)
            return "" if found == expected else f"after {what}: other weights"
    return ""  # one clear error each time, which the user reads


def _start(folder: Path, run: Path, full: int = 0) -> subprocess.Popen[str]:
    def starve() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (full, full))

    words = ["distill", str(folder / "tiny.yaml"), "--run-dir", str(run)]
    return subprocess.Popen(
        [sys.executable, "-m", "spiritseg", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=starve if full else None,  # one thread until then
    )


def _fault(process: subprocess.Popen[str], allowed: tuple[int, ...]) -> str:
    said = process.communicate()[1]
    if "Traceback" in said:
        return said
    return "" if process.returncode in allowed else f"exit code {process.returncode}: {said}"


def _damage(run: Path, kind: str, draw: random.Random) -> str:
    """Damage a file of a finished run; half of the time it has lost its end, too."""
    if draw.random() < 0.5:
        (run / "metrics.json").unlink()
    files = sorted(path for path in run.rglob("*") if path.is_file())
    chosen = draw.choice([p for p in files if p.suffix in (".json", ".safetensors", ".yaml")])
    data = bytearray(chosen.read_bytes())
    if kind == "remove":
        chosen.unlink()
    elif kind == "cut":
        chosen.write_bytes(data[: draw.randrange(len(data))])
    else:
        for _ in range(4):
            data[draw.randrange(len(data))] = draw.randrange(256)
        chosen.write_bytes(data)
    return f"{kind} {chosen.relative_to(run)}"


def _digest(run: Path) -> str:
    path = run / "student" / "student.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no student"


if __name__ == "__main__":
    main()
