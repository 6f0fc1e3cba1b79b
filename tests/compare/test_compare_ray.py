"""A matrix on a local Ray cluster of two nodes, one of which is killed in the middle."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spiritseg.compare.matrix import plan, run
from spiritseg.compare.pools import Here, Outcome, RayCluster, Task, drive
from spiritseg.errors import MissingExtraError, RunError

ray = pytest.importorskip("ray", reason="Ray is not installed: the extra [cluster] brings it")

# Ray starts subprocesses and sockets of its own, which it leaves to the interpreter's end.
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(240),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with one CPU each, on this machine; the first test kills one."""
    from ray.cluster_utils import Cluster

    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "2")
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")
    memory = 100 * 2**20
    options = {"object_store_memory": memory, "include_dashboard": False}
    found: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **options})
    found.doomed = found.add_node(num_cpus=1, resources={"doomed": 1}, object_store_memory=memory)
    found.wait_for_nodes()
    ray.init(address=found.address, log_to_driver=False, logging_level="error")
    yield found
    ray.shutdown()
    found.shutdown()
    monkeypatch.undo()


def _work() -> Any:
    """Make a task that takes steps and continues from the last one, like a run.

    On the node that is to die it stops after some steps and waits for that.
    """

    def work(task: Task) -> None:
        folder = Path(task.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        node = os.environ.get("RAY_NODE_ID", ray.get_runtime_context().get_node_id())
        doomed = folder.parent / "doomed"
        dies = doomed.exists() and doomed.read_text() == node
        with (folder / "attempts").open("a") as log:
            log.write(f"{node}\n")
        state = folder / "state"
        step, value = json.loads(state.read_text()) if state.exists() else (0, task.fields["seed"])
        while step < 8:
            time.sleep(0.1)
            step, value = step + 1, (value * 31 + step) % 1009
            (folder / "part").write_text(json.dumps([step, value]))
            (folder / "part").replace(state)
            if dies and step == 3:
                time.sleep(120)
        if task.fields["seed"] == 3:
            raise RunError("the fourth cell fails")
        with (folder / "finished").open("a") as log:
            log.write(f"{value}\n")

    return work


def _tasks(out: Path) -> list[Task]:
    return [Task(f"cell-{seed}", {"seed": seed}, str(out / f"cell-{seed}")) for seed in range(5)]


def _finished(out: Path) -> dict[str, list[str]]:
    return {p.parent.name: p.read_text().split() for p in sorted(out.glob("*/finished"))}


def _kill_when_busy(cluster: Any, out: Path, seen: list[str]) -> None:
    """Kill the second node as soon as a cell has taken some steps on it."""
    doomed = cluster.doomed.node_id
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for log in out.glob("*/attempts"):
            state = log.parent / "state"
            if (
                doomed in log.read_text()
                and state.exists()
                and json.loads(state.read_text())[0] == 3
            ):
                seen.append(log.parent.name)
                cluster.remove_node(cluster.doomed, allow_graceful=False)
                return
        time.sleep(0.02)


def test_a_node_dies_and_every_cell_finishes_once(cluster: Any, tmp_path: Path) -> None:
    out, seen = tmp_path / "ray", list[str]()
    out.mkdir()
    (out / "doomed").write_text(cluster.doomed.node_id)
    killer = threading.Thread(target=_kill_when_busy, args=(cluster, out, seen))
    killer.start()
    outcomes = drive(_tasks(out), RayCluster("auto", work=_work()))
    killer.join()
    assert seen, "no cell ran on the second node"
    attempts = (out / seen[0] / "attempts").read_text().split()
    assert len(attempts) == 2  # it was tried again, on the node that is left
    assert attempts[0] != attempts[1]
    one_process = drive(_tasks(tmp_path / "here"), Here(work=_work()))
    assert _states(outcomes) == _states(one_process)
    assert _finished(out) == _finished(tmp_path / "here")
    assert all(len(found) == 1 for found in _finished(out).values())
    assert len(_finished(out)) == 4


def _states(outcomes: list[Outcome]) -> dict[str, tuple[str, str]]:
    return {one.name: (one.state, one.error) for one in outcomes}


def test_a_run_on_ray_equals_one_in_this_process(cluster: Any, tmp_path: Path) -> None:
    scenes = {"train": 2, "val": 1, "test": 2, "size": [64, 72]}
    fields = {
        "target.dataset": "scenes",
        "target.scenes": scenes,
        "input.crop": 64,
        "stages.supervised.max_steps": 2,
        "stages.supervised.batch_size": 2,
        "evaluation.latency": False,
        "evaluation.pictures": 0,
        "trainer.progress": False,
        "trainer.accelerator": "cpu",
    }
    cells = plan(["baseline"], fields, seeds=1)
    assert [one.state for one in run(cells, tmp_path / "ray", address="auto")] == ["finished"]
    assert [one.state for one in run(cells, tmp_path / "here")] == ["finished"]
    name = f"{cells[0].folder}/per_image.csv"
    assert (tmp_path / "ray" / name).read_text() == (tmp_path / "here" / name).read_text()


def test_no_cluster_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: Any) -> None:
        assert options["address"] == "head:6379"
        raise ConnectionError("nobody there")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RunError, match=r"--address head:6379: no Ray cluster answers \(nobody"):
        RayCluster("head:6379")


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"spiritseg\[cluster\]"):
        RayCluster("auto")
