"""Where the runs of a matrix run: in this process, in subprocesses, or on a Ray cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import math
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from spiritseg.cores import usable_cores
from spiritseg.errors import MissingExtraError, RunError, SpiritsegError
from spiritseg.stopping import terminable

__all__ = ["Executor", "InProcess", "Outcome", "RayCluster", "Subprocesses", "Task", "run_tasks"]

_RETRIES = 5  # of a Ray task whose machine died
_LOCK_S = 120.0  # how long a retried task waits for the folder of the one that died
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_CHILD = "import sys; from spiritseg.compare.executors import child; sys.exit(child())"


@dataclass(frozen=True)
class Task:
    """A run to do, in plain values that can be sent to another machine."""

    name: str
    fields: dict[str, Any]  # of its experiment
    run_dir: str  # absolute
    shared: dict[str, list[str]] = field(default_factory=dict)  # by stage: folders to copy from
    keys: frozenset[str] = frozenset()  # of shared stages that are finished nowhere


@dataclass(frozen=True)
class Outcome:
    """Whether a cell's run finished now, was finished before (kept), or failed, and why."""

    name: str
    state: Literal["finished", "kept", "failed"]
    error: str = ""
    seconds: float = 0.0


class Executor(Protocol):
    """Runs tasks; a future's result is the error message, empty for none."""

    at_once: float

    def submit(self, task: Task) -> Future[str]:
        """Start a task."""

    def close(self) -> None:
        """Stop what still runs."""


def run_tasks(tasks: Sequence[Task], executor: Executor) -> list[Outcome]:
    """Run tasks, in turn where two share an unfinished stage; return outcomes as they ended."""
    pending, outcomes = list(tasks), list[Outcome]()
    running: dict[Future[str], tuple[Task, float]] = {}
    try:
        while pending or running:
            while len(running) < executor.at_once and (
                task := _next(pending, [task for task, _ in running.values()])
            ):
                pending.remove(task)
                print(f"{task.name} ...", flush=True)
                start = time.monotonic()
                running[executor.submit(task)] = (task, start)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task, start = running.pop(future)
                lost = future.exception()
                error = f"its worker was lost: {lost}" if lost else future.result()
                seconds = time.monotonic() - start
                state: Literal["failed", "finished"] = "failed" if error else "finished"
                outcomes.append(Outcome(task.name, state, error, seconds))
                done = f"{len(outcomes)}/{len(tasks)}"
                print(f"{task.name}: {state}, {seconds:.0f} s, {done}", flush=True)
    finally:
        executor.close()
    return outcomes


def _next(pending: Iterable[Task], running: Iterable[Task]) -> Task | None:
    busy = frozenset[str]().union(*(task.keys for task in running))
    return next((task for task in pending if not task.keys & busy), None)


def do(task: Task) -> None:
    """Run a task in this process; it raises what `spiritseg.distill` raises."""
    from spiritseg.compare.shared_stages import share_stages
    from spiritseg.recipes import experiment_from_dict
    from spiritseg.training.run import distill

    experiment = experiment_from_dict(task.fields)
    sources = {stage: [Path(one) for one in folders] for stage, folders in task.shared.items()}
    share_stages(experiment, Path(task.run_dir), sources)
    distill(experiment, task.run_dir)


def _attempt(task: Task, work: Callable[[Task], None]) -> str:
    """Do a task; return the error message, empty for none."""
    try:
        work(task)
    except SpiritsegError as error:
        return str(error)
    except Exception:  # a bug in one run must not stop the others; it is reported at the end
        return traceback.format_exc()
    return ""


class InProcess:
    """One task at a time, in this process."""

    at_once: float = 1

    def __init__(self, work: Callable[[Task], None] = do) -> None:
        self._work = work

    def submit(self, task: Task) -> Future[str]:
        """Do the task to its end."""
        future = Future[str]()
        future.set_result(_attempt(task, self._work))
        return future

    def close(self) -> None:
        """Nothing is left running."""


class Subprocesses:
    """Several tasks at once, each in a process of its own with its share of the threads.

    The death of one (out of memory, a segmentation fault) leaves the others alone, which a
    `ProcessPoolExecutor` does not. What a run prints goes to ``logs/NAME.log`` next to its folder.
    """

    def __init__(self, jobs: int) -> None:
        self.at_once: float = jobs
        self._waiting = ThreadPoolExecutor(jobs)
        self._started: list[subprocess.Popen[bytes]] = []
        threads = str(max(1, usable_cores() // jobs))
        self._environment = {**os.environ, **dict.fromkeys(_THREADS, threads)}

    def submit(self, task: Task) -> Future[str]:
        """Start a process."""
        run_dir = Path(task.run_dir)
        log = run_dir.parent / "logs" / f"{run_dir.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as out:
            pipes: Any = {"stdin": subprocess.PIPE, "stdout": out, "stderr": out}
            command = [sys.executable, "-c", _CHILD]
            process = subprocess.Popen(command, env=self._environment, **pipes)
        self._started.append(process)
        return self._waiting.submit(_ended, process, task, log)

    def close(self) -> None:
        """Terminate the processes; their runs continue another time."""
        for process in self._started:
            process.terminate()  # nothing for those that have ended
        self._waiting.shutdown()


def _ended(process: subprocess.Popen[bytes], task: Task, log: Path) -> str:
    """Send a process its task; wait for its end and return the error message."""
    plain = {**dataclasses.asdict(task), "keys": []}
    process.communicate(json.dumps(plain).encode())
    if process.returncode == 0 and (Path(task.run_dir) / "metrics.json").is_file():
        return ""
    text = log.read_text(errors="replace").strip()
    is_user_error = process.returncode == 2
    shown = text.rpartition("spiritseg: error: ")[2] if is_user_error else text[-2000:]
    return f"{shown or 'no output'} (exit code {process.returncode}; {log})"


def child() -> int:
    """Do the task that comes as JSON on standard input; 0 for done, 2 for a user's mistake."""
    try:
        with terminable():
            do(Task(**json.load(sys.stdin)))
    except SpiritsegError as error:
        print(f"spiritseg: error: {error}", file=sys.stderr)
        return 2
    return 0


class RayCluster:
    """As many tasks at once as a Ray cluster has room for.

    A task whose machine dies is tried again on another, where its run continues: its folder must
    be on storage that all machines share. A cluster that this process already joined is used.
    """

    at_once: float = math.inf  # Ray queues what does not fit

    def __init__(
        self, address: str, cpus: float = 1, gpus: float = 0, work: Callable[[Task], None] = do
    ) -> None:
        try:
            import ray
        except ImportError:
            raise MissingExtraError(
                "--address needs Ray: pip install 'spiritseg[cluster]'. Without --address the "
                "matrix runs on this machine."
            ) from None
        self._ray, self._work, self._threads = ray, work, max(1, int(cpus))
        self._references: list[Any] = []
        self._owns = not ray.is_initialized()
        if self._owns:
            where = {"include_dashboard": False} if address == "local" else {"address": address}
            try:
                ray.init(**where, log_to_driver=False, logging_level=logging.WARNING)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise RunError(
                    f"--address {address}: no Ray cluster answers ({error}). Start one with "
                    "'ray start --head', or use --address local."
                ) from None
        self._remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=_RETRIES)(_on_a_node)

    def submit(self, task: Task) -> Future[str]:
        """Queue a task."""
        reference = self._remote.remote(task, self._work, self._threads, str(Path.cwd()))
        self._references.append(reference)
        future: Future[str] = reference.future()
        return future

    def close(self) -> None:
        """Cancel what still runs, and leave the cluster."""
        for reference in self._references:
            self._ray.cancel(reference, force=True)  # nothing for those that have ended
        if self._owns:
            self._ray.shutdown()


def _on_a_node(task: Task, work: Callable[[Task], None], threads: int, here: str) -> str:
    """Do a task on a machine of a cluster; return the error message."""
    import torch

    torch.set_num_threads(threads)
    if Path(here).is_dir():
        os.chdir(here)  # paths of the config may be relative
    _wait_for_lock(Path(task.run_dir) / ".lock")
    try:
        with terminable():
            return _attempt(task, work)
    except SystemExit as stop:  # which Ray would take for a worker that died
        return f"it was stopped (exit code {stop.code}); the same command continues"


def _wait_for_lock(path: Path) -> None:
    """Wait until the run's folder is free: a task that died may take some seconds to go."""
    end = time.monotonic() + _LOCK_S
    while path.exists() and time.monotonic() < end:
        with path.open("a") as lock, contextlib.suppress(OSError):
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.5)
