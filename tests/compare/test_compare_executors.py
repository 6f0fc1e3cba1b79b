"""Runs at once, and what stops them: signals, processes that die, a Ray node that dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from compare.conftest import WORDS
from spiritseg.compare import executors
from spiritseg.compare.executors import (
    InProcess,
    Outcome,
    RayCluster,
    Subprocesses,
    Task,
    run_tasks,
)
from spiritseg.errors import MissingExtraError, RunError


def _wait(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


class Crowd:
    """Up to three tasks at once, in threads; which ones overlapped is noted."""

    at_once: float = 3

    def __init__(self) -> None:
        self.threads, self.lock = ThreadPoolExecutor(3), threading.Lock()
        self.running: set[str] = set()
        self.together: set[frozenset[str]] = set()

    def submit(self, task: Task) -> Future[str]:
        with self.lock:
            self.running.add(task.name)
            self.together |= {frozenset((task.name, other)) for other in self.running}
        return self.threads.submit(self._end, task.name)

    def _end(self, name: str) -> str:
        time.sleep(0.05)
        with self.lock:
            self.running.remove(name)
        return ""

    def close(self) -> None:
        self.threads.shutdown()


def test_runs_that_share_an_unfinished_stage_do_not_run_at_once() -> None:
    shared = {"a": "x", "b": "x", "c": "y", "d": "x", "e": "y"}
    tasks = [Task(name, {}, name, keys=frozenset(key)) for name, key in shared.items()]
    crowd = Crowd()
    outcomes = run_tasks(tasks, crowd)
    assert sorted(one.name for one in outcomes) == list(shared)
    assert frozenset("ac") in crowd.together
    for one, other in ("ab", "ad", "bd", "ce"):
        assert frozenset((one, other)) not in crowd.together


def test_a_stopped_matrix_continues_by_the_same_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "spiritseg", *WORDS, "--seeds", "1"]
    command += ["--stages.supervised.max_steps", "400", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    _wait(lambda: bool(list(tmp_path.glob("out/*/stages/*/csv/*/*"))))
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 143, error
    assert error.splitlines()[-1] == "spiritseg: stopped; the same command continues."
    assert not list(tmp_path.glob("out/*/metrics.json"))
    assert list(tmp_path.glob("out/*/stages/*/step-*.ckpt"))
    continued = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "baseline-n64-s0: finished" in continued.stdout
    # Each attempt that took a step has a log of its own.
    assert len(list(tmp_path.glob("out/*/stages/*/csv/attempt-*"))) == 2


# In place of a run: it notes its start, and ends well once there is a file `go`.
CHILD = """
import json, os, sys, time
from pathlib import Path
task = json.load(sys.stdin)
run = Path(task["run_dir"])
run.mkdir(exist_ok=True)
if task["fields"].get("dies"): os.abort()
(run / "started").write_text(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']}")
while not (run.parent / "go").exists(): time.sleep(0.02)
if not task["fields"].get("forgets"): (run / "metrics.json").touch()
"""
MATRIX = """
import sys
from spiritseg.compare import executors
from spiritseg.stopping import terminable
executors._CHILD = sys.argv[2]
tasks = [executors.Task(n, {}, f"{sys.argv[1]}/{n}") for n in ("a", "b", "c")]
with terminable():
    executors.run_tasks(tasks, executors.Subprocesses(2))
"""


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_stopped_matrix_stops_its_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MATRIX, str(tmp_path), CHILD]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    started = [tmp_path / name / "started" for name in "ab"]
    _wait(lambda: all(path.exists() and path.read_text() for path in started))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert not any(_is_alive(int(path.read_text().split()[0])) for path in started)
    assert not (tmp_path / "c").exists()


def test_a_process_that_dies_or_writes_no_metrics_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "_CHILD", CHILD)
    (tmp_path / "go").touch()
    fields: dict[str, dict[str, Any]] = {"a": {"dies": True}, "b": {}, "c": {"forgets": True}}
    tasks = [Task(name, given, str(tmp_path / name)) for name, given in fields.items()]
    found = {one.name: one for one in run_tasks(tasks, Subprocesses(2))}
    assert [found[name].state for name in "abc"] == ["failed", "finished", "failed"]
    assert "exit code -6" in found["a"].error
    assert str(tmp_path / "logs/a.log") in found["a"].error
    assert "no output (exit code 0" in found["c"].error
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert int((tmp_path / "b/started").read_text().split()[1]) == threads


# Ray starts subprocesses and sockets of its own, which it leaves to the interpreter's end.
with_ray = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with one CPU each, on this machine; one of them is killed by a test."""
    ray = pytest.importorskip(
        "ray", reason="Ray is not installed: pip install 'spiritseg[cluster]'"
    )
    from ray.cluster_utils import Cluster

    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "2")
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")
    options = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
    found: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **options})
    found.doomed = found.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    found.wait_for_nodes()
    ray.init(address=found.address, log_to_driver=False, logging_level="error")
    yield found
    ray.shutdown()
    found.shutdown()
    monkeypatch.undo()


def _work() -> Any:
    """Make a task that takes steps and continues from the last one, like a run.

    The first attempt at a task that has a file ``NAME.waits`` waits after its third step.
    """

    def work(task: Task) -> None:
        import ray

        folder = Path(task.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "here"
        with (folder / "attempts").open("a") as log:
            log.write(f"{node} {os.getpid()}\n")
        first = len((folder / "attempts").read_text().splitlines()) == 1
        waits = first and (folder.parent / f"{task.name}.waits").exists()  # as it starts
        state = folder / "state"
        step, value = json.loads(state.read_text()) if state.exists() else (0, task.fields["seed"])
        while step < 5:
            time.sleep(0.02)
            step, value = step + 1, (value * 31 + step) % 1009
            (folder / "part").write_text(json.dumps([step, value]))
            (folder / "part").replace(state)
            if waits and step == 3:
                time.sleep(120)
        if task.fields["seed"] == 2:
            raise RunError("the third cell fails")
        with (folder / "finished").open("a") as log:
            log.write(f"{value}\n")

    return work


def _tasks(out: Path, count: int = 4) -> list[Task]:
    return [
        Task(f"cell-{seed}", {"seed": seed}, str(out / f"cell-{seed}")) for seed in range(count)
    ]


def _finished(out: Path) -> dict[str, list[str]]:
    return {path.parent.name: path.read_text().split() for path in sorted(out.glob("*/finished"))}


def _attempts(out: Path, name: str) -> list[list[str]]:
    """Return (node, process) of each attempt at a task."""
    log = out / name / "attempts"
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def _is_waiting(out: Path, name: str) -> bool:
    state = out / name / "state"
    return state.exists() and json.loads(state.read_text())[0] == 3


def _run_and(act: Callable[[], None], tasks: list[Task]) -> dict[str, Outcome]:
    """Run tasks on the cluster while something is done to it."""
    actor = threading.Thread(target=act)
    actor.start()
    outcomes = run_tasks(tasks, RayCluster("auto", work=_work()))
    actor.join()
    return {one.name: one for one in outcomes}


@with_ray
@pytest.mark.timeout(240)
def test_a_stopped_ray_worker_is_a_failed_run_that_continues(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "cell-0.waits").touch()

    def stop() -> None:
        _wait(lambda: _is_waiting(tmp_path, "cell-0"))
        os.kill(int(_attempts(tmp_path, "cell-0")[0][1]), signal.SIGTERM)

    outcomes = _run_and(stop, _tasks(tmp_path, 2))
    assert outcomes["cell-1"].state == "finished"
    assert outcomes["cell-0"].state == "failed"
    assert outcomes["cell-0"].error == (
        "it was stopped (exit code 143); the same command continues"
    )
    (again,) = run_tasks(_tasks(tmp_path, 1), RayCluster("auto", work=_work()))
    assert again.state == "finished"
    assert len(_attempts(tmp_path, "cell-0")) == 2


@with_ray
@pytest.mark.timeout(240)
def test_a_node_dies_and_every_cell_finishes_once(cluster: Any, tmp_path: Path) -> None:
    out, doomed = tmp_path / "ray", cluster.doomed.node_id
    out.mkdir()
    seen: list[str] = []
    for task in _tasks(out):
        (out / f"{task.name}.waits").touch()

    def on_doomed() -> bool:
        waiting = [t.name for t in _tasks(out) if _is_waiting(out, t.name)]
        seen[:] = [name for name in waiting if _attempts(out, name)[0][0] == doomed]
        return bool(seen)

    def kill() -> None:
        _wait(on_doomed)
        for task in _tasks(out):
            (out / f"{task.name}.waits").unlink()  # those that start later do not wait
        cluster.remove_node(cluster.doomed, allow_graceful=False)
        for name, process in ((t.name, _attempts(out, t.name)) for t in _tasks(out)):
            if name not in seen and process and _is_waiting(out, name):
                os.kill(int(process[0][1]), signal.SIGKILL)

    outcomes = _run_and(kill, _tasks(out))
    attempts = _attempts(out, seen[0])
    assert len(attempts) == 2  # it was tried again, on the node that is left
    assert attempts[0][0] != attempts[1][0]
    here = run_tasks(_tasks(tmp_path / "here"), InProcess(work=_work()))
    for one in here:
        assert (outcomes[one.name].state, outcomes[one.name].error) == (one.state, one.error)
    assert _finished(out) == _finished(tmp_path / "here")
    assert [len(found) for found in _finished(out).values()] == [1, 1, 1]


def test_no_cluster_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")

    def init(**options: Any) -> None:
        assert options["address"] == "head:6379"
        raise ConnectionError("nobody there")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RunError, match=r"--address head:6379: no Ray cluster answers \(nobody"):
        RayCluster("head:6379")


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"spiritseg\[cluster\]"):
        RayCluster("auto")
