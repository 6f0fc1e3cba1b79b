"""Where the runs of a matrix run: in this process, in several, or on a Ray cluster."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from spiritseg.cores import usable_cores
from spiritseg.errors import ConfigError, MissingExtraError, RunError, SpiritsegError

__all__ = ["Here", "Outcome", "Pool", "Processes", "RayCluster", "Task", "drive", "make_pool"]

_RETRIES = 5  # of a Ray task whose machine died
_LOCK_S = 120.0  # how long a retried task waits for the folder of the one that died


@dataclass(frozen=True)
class Task:
    """A run to do, in plain values that travel.

    Args:
        name: of its cell.
        fields: of its experiment.
        run_dir: its folder, an absolute path.
        shared: by stage, folders of other runs that may hold the same stage, finished.
        keys: of its stages that another run has too, and that are not finished anywhere.
    """

    name: str
    fields: dict[str, Any]
    run_dir: str
    shared: dict[str, list[str]] = field(default_factory=dict)
    keys: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    Args:
        name: of the cell; its run's folder below the matrix's.
        state: finished now, kept from before, or failed.
        error: why it failed.
        seconds: that it took, where it ran now.
    """

    name: str
    state: Literal["finished", "kept", "failed"]
    error: str = ""
    seconds: float = 0.0


class Pool(Protocol):
    """Runs tasks, some at once."""

    def has_room(self) -> bool:
        """Whether another task can be started."""

    def start(self, task: Task) -> None:
        """Start a task."""

    def wait(self) -> tuple[str, str]:
        """Wait until a task ends; return its name, and its error or nothing."""

    def close(self) -> None:
        """End what still runs."""


def make_pool(jobs: int, address: str | None, cpus: float, gpus: float) -> Pool:
    """Choose where to run; the arguments are those of `matrix.run`."""
    if jobs < 1:
        raise ConfigError(f"--jobs: expected 1 or more, got {jobs}.")
    if address is not None:
        return RayCluster(address, cpus, gpus)
    return Here() if jobs == 1 else Processes(jobs)


def drive(tasks: Sequence[Task], pool: Pool) -> list[Outcome]:
    """Run tasks to their end; two that share an unfinished stage run one after the other.

    Args:
        tasks: in the order in which they start.
        pool: where.

    Returns:
        What became of each, in the order in which they ended.
    """
    pending, running = list(tasks), dict[str, tuple[Task, float]]()
    outcomes: list[Outcome] = []
    try:
        while pending or running:
            while pool.has_room() and (task := _next(pending, running)) is not None:
                pending.remove(task)
                running[task.name] = (task, time.monotonic())
                print(f"{task.name} ...", flush=True)
                pool.start(task)
            name, error = pool.wait()
            seconds = time.monotonic() - running.pop(name)[1]
            state: Literal["failed", "finished"] = "failed" if error else "finished"
            outcomes.append(Outcome(name, state, error, seconds))
            print(f"{name}: {state}, {seconds:.0f} s, {len(outcomes)}/{len(tasks)}", flush=True)
    finally:
        pool.close()
    return outcomes


def _next(pending: list[Task], running: dict[str, tuple[Task, float]]) -> Task | None:
    busy = frozenset[str]().union(*(task.keys for task, _ in running.values()))
    return next((task for task in pending if not task.keys & busy), None)


def do(task: Task) -> None:
    """Run a task in this process.

    Args:
        task: the run.

    Raises:
        SpiritsegError: as `spiritseg.distill`.
    """
    from spiritseg.compare.stages import share_stages
    from spiritseg.recipes import experiment_from_dict
    from spiritseg.training.runner import distill

    experiment = experiment_from_dict(task.fields)
    run_dir = Path(task.run_dir)
    sources = {stage: map(Path, folders) for stage, folders in task.shared.items()}
    share_stages(experiment, run_dir, dict(sources))
    distill(experiment, run_dir)


def attempt(task: Task, work: Callable[[Task], None]) -> str:
    """Do a task; return what went wrong, or nothing."""
    try:
        work(task)
    except SpiritsegError as error:
        return str(error)
    except Exception:  # a bug in one run must not stop the others; it is reported at the end
        return traceback.format_exc()
    return ""


class Here:
    """One task at a time, in this process.

    Args:
        work: what a task does.
    """

    def __init__(self, work: Callable[[Task], None] = do) -> None:
        self._work = work
        self._done: list[tuple[str, str]] = []

    def has_room(self) -> bool:
        """Whether no result waits to be taken."""
        return not self._done

    def start(self, task: Task) -> None:
        """Do the task, to its end."""
        self._done.append((task.name, attempt(task, self._work)))

    def wait(self) -> tuple[str, str]:
        """Return the task that was done."""
        return self._done.pop()

    def close(self) -> None:
        """Nothing is left running."""


class Processes:
    """Several tasks at once, each in a process of its own, with its share of the threads.

    What a run prints goes to ``logs/NAME.log`` beside its folder.

    Args:
        jobs: how many at once.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._running: dict[str, tuple[subprocess.Popen[bytes], Path, Path]] = {}
        threads = str(max(1, usable_cores() // jobs))
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        self._environment = {**os.environ, **dict.fromkeys(names, threads)}

    def has_room(self) -> bool:
        """Whether fewer than `jobs` run."""
        return len(self._running) < self.jobs

    def start(self, task: Task) -> None:
        """Start a process."""
        run_dir = Path(task.run_dir)
        log = run_dir.parent / "logs" / f"{run_dir.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "spiritseg.compare.cell"]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=out, env=self._environment
            )
        assert process.stdin is not None
        said = {"name": task.name, "fields": task.fields, "shared": task.shared}
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # its log says why
            pipe.write(json.dumps({**said, "run_dir": task.run_dir}).encode())
        self._running[task.name] = (process, log, run_dir)

    def wait(self) -> tuple[str, str]:
        """Wait for the first process that ends."""
        while True:
            for name, (process, log, run_dir) in self._running.items():
                if (code := process.poll()) is not None:
                    del self._running[name]
                    finished = code == 0 and (run_dir / "metrics.json").is_file()
                    return name, "" if finished else _last_words(log, code)
            time.sleep(0.05)

    def close(self) -> None:
        """End the processes; their runs continue another time."""
        processes = [process for process, _, _ in self._running.values()]
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        self._running.clear()


def _last_words(log: Path, code: int) -> str:
    text = log.read_text(errors="replace").strip()
    said = text.rpartition("spiritseg: error: ")[2] if code == 2 else text[-2000:]
    return f"{said or 'it said nothing'} (exit code {code}; {log})"


class RayCluster:
    """As many tasks at once as a Ray cluster has room for.

    A task whose machine dies is tried again on another, where its run continues: its folder must
    be on storage that all machines share. A cluster that this process is in already is used.

    Args:
        address: auto, local, or HOST:PORT.
        cpus: that a task declares.
        gpus: that it declares.
        work: what a task does.
    """

    def __init__(
        self,
        address: str,
        cpus: float = 1,
        gpus: float = 0,
        work: Callable[[Task], None] = do,
    ) -> None:
        try:
            import ray
        except ImportError:
            raise MissingExtraError(
                "--address needs Ray: pip install 'spiritseg[cluster]'. Without --address the "
                "matrix runs on this machine."
            ) from None
        self._ray = ray
        self._owns = not ray.is_initialized()
        if self._owns:
            local: dict[str, Any] = {"include_dashboard": False}
            where = local if address == "local" else {"address": address}
            try:
                ray.init(**where, log_to_driver=False, logging_level=logging.WARNING)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise RunError(
                    f"--address {address}: no Ray cluster answers ({error}). Start one with "
                    "'ray start --head', or use --address local."
                ) from None
        self._task = ray.remote(
            num_cpus=cpus, num_gpus=gpus, max_retries=_RETRIES, retry_exceptions=False
        )(_on_a_node)
        self._work = work
        self._threads = max(1, int(cpus))
        self._names: dict[Any, str] = {}

    def has_room(self) -> bool:
        """Ray queues what does not fit."""
        return True

    def start(self, task: Task) -> None:
        """Submit a task."""
        reference = self._task.remote(task, self._work, self._threads, str(Path.cwd()))
        self._names[reference] = task.name

    def wait(self) -> tuple[str, str]:
        """Wait for the first task that ends."""
        (reference, *_), _ = self._ray.wait(list(self._names), num_returns=1)
        name = self._names.pop(reference)
        try:
            error: str = self._ray.get(reference)
        except self._ray.exceptions.RayError as lost:
            error = f"its machine died {_RETRIES + 1} times, or Ray failed: {lost}"
        return name, error

    def close(self) -> None:
        """Cancel what still runs, and leave the cluster."""
        for reference in self._names:
            self._ray.cancel(reference, force=True)
        if self._owns:
            self._ray.shutdown()


def _on_a_node(task: Task, work: Callable[[Task], None], threads: int, here: str) -> str:
    """Do a task on a machine of a cluster."""
    import torch

    torch.set_num_threads(threads)
    if Path(here).is_dir():
        os.chdir(here)  # paths of the config may be relative
    _wait_for_lock(Path(task.run_dir) / ".lock")
    try:
        return attempt(task, work)
    except SystemExit as stop:  # which Ray might take for the end of the task
        return f"it was stopped (exit code {stop.code}); the same command continues"


def _wait_for_lock(path: Path) -> None:
    """Wait until the run's folder is free: a task that died may take some seconds to go."""
    end = time.monotonic() + _LOCK_S
    while path.exists() and time.monotonic() < end:
        with path.open("a") as lock, contextlib.suppress(OSError):
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.5)
