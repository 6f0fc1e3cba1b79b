"""Which runs a matrix has, that each runs once, and that a failure does not stop the others."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import spiritseg
from compare.conftest import TINY, WORDS, steps
from spiritseg.cli import main
from spiritseg.cli.words import read_fields
from spiritseg.compare.executors import InProcess, Task
from spiritseg.compare.matrix import Cell, left_out, plan, run
from spiritseg.errors import ConfigError, RunError
from spiritseg.recipes import to_yaml


def _tiny(seeds: int = 1, **further: Any) -> list[Cell]:
    """Plan runs of a step."""
    return plan(["baseline"], {**TINY, **steps(1, "supervised"), **further}, seeds)


def test_recipes_by_ratios_by_seeds() -> None:
    cells = plan(["baseline", "esd"], TINY, seeds=2, ratios=[5, 0.5, 0])
    assert [cell.folder for cell in cells] == [
        "baseline-n64-s0",
        "esd-r5-n64-s0",
        "esd-r0.5-n64-s0",
        "esd-r0-n64-s0",
        "baseline-n64-s1",
        "esd-r5-n64-s1",
        "esd-r0.5-n64-s1",
        "esd-r0-n64-s1",
    ]
    ratios = [cell.experiment.stages["mimicry"].ratio for cell in cells[1:4]]
    assert ratios == [5, 0.5, 0]
    assert [cell.experiment.seed for cell in cells[::4]] == [0, 1]
    own = plan(["esd"], TINY, seeds=1)  # a recipe's own ratio is the same cell
    assert [c.folder for c in own] == [c.folder for c in plan(["esd"], TINY, 1, [0.5, 0.5])]


@pytest.mark.parametrize(
    ("subset", "folders"),
    [
        ("first:64", ["baseline-n16-s0", "baseline-n64-s0", "baseline-all-s0"]),
        ("even:64", ["baseline-even16-s0", "baseline-even64-s0", "baseline-all-s0"]),
    ],
)
def test_labels(subset: str, folders: list[str]) -> None:
    cells = plan(["baseline"], {**TINY, "target.subset": subset}, 1, labels=[16, "64", "all"])
    assert [cell.folder for cell in cells] == folders
    kind = subset.partition(":")[0]
    assert [c.experiment.target.subset for c in cells] == [f"{kind}:16", f"{kind}:64", "all"]


def test_fields_of_a_stage_go_to_the_recipes_that_have_it() -> None:
    fields = {**TINY, "stages.mimicry.max_steps": 7, "stages.supervised.max_steps": 8}
    baseline, sd = plan(["baseline", "sd"], fields, seeds=1)
    assert list(baseline.experiment.stages) == ["supervised"]
    assert baseline.experiment.stages["supervised"].max_steps == 8
    assert list(sd.experiment.stages) == ["mimicry", "head", "all"]
    assert sd.experiment.stages["mimicry"].max_steps == 7
    words = ["--stages.ct-head.max-steps", "7", "--sd-skd.stages.ct-all.max_steps", "8"]
    (cell,) = plan(["sd-skd"], {**TINY, **read_fields(words)}, seeds=1)  # a name with a dash
    stages = cell.experiment.stages
    assert (stages["ct-head"].max_steps, stages["ct-all"].max_steps) == (7, 8)


def test_fields_that_a_recipe_does_not_have_are_listed() -> None:
    fields = {**TINY, "stages.all.max_steps": 7, "networks.teacher.head.name": "none"}
    fields |= {"esd.stages.head.max_steps": 3}
    assert left_out(["baseline", "esd", "finetune-pretrained"], fields) == {
        "baseline": ["stages.all.max_steps", "networks.teacher.head.name"],
        "finetune-pretrained": ["stages.all.max_steps", "networks.teacher.head.name"],
    }


def test_fields_of_a_recipe_go_to_it_alone() -> None:
    words = [
        "--paper-baseline.input.flip",
        "0.75",
        "--paper-baseline.stages.supervised.num_views=2",
    ]
    fields = {**TINY, "input.flip": 0.25, **read_fields(words)}
    baseline, paper = (c.experiment for c in plan(["baseline", "paper-baseline"], fields, seeds=1))
    assert (baseline.input.flip, paper.input.flip) == (0.25, 0.75)
    assert (baseline.stages["supervised"].num_views, paper.stages["supervised"].num_views) == (0, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipes": []}, "one recipe or more"),
        ({"recipes": ["sdd"]}, "Did you mean sd"),
        ({"recipes": ["sd", "other/sd.yaml"]}, "two recipes are called sd"),
        ({"seeds": 0}, "--seeds"),
        ({"overrides": {"seed": 3}}, "use --seeds"),
        ({"overrides": {"stages.mimic.max_steps": 3}}, "has mimic in its stages"),
        ({"overrides": {**TINY, "baseline.networks.studnt.trust": True}}, "mean student"),
        ({"ratios": [0.5]}, "mix"),
        ({"labels": [16, "x"]}, "--labels"),
        ({"labels": [0]}, "--labels"),
        ({"overrides": {"input.crop": -1, "target.dataset": "scenes"}}, "input.crop"),
    ],
)
def test_bad_plans_are_one_clear_error(arguments: dict[str, Any], message: str) -> None:
    given = {"recipes": ["baseline"], "overrides": TINY, "seeds": 1, **arguments}
    with pytest.raises(ConfigError, match=message):
        plan(**given)


def _counting(done: list[str], fail: str = "", stop: str = "") -> Callable[[Task], None]:
    def work(task: Task) -> None:
        if task.name == stop:
            raise KeyboardInterrupt
        done.append(task.name)
        if task.name == fail:
            raise ZeroDivisionError("a bug")
        Path(task.run_dir).mkdir()
        (Path(task.run_dir) / "metrics.json").touch()

    return work


def test_an_interrupted_matrix_continues_without_repeating_finished_runs(tmp_path: Path) -> None:
    cells = _tiny(seeds=3)
    first, second, third = (cell.folder for cell in cells)
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run(cells, tmp_path, executor=InProcess(_counting(done, stop=third)))
    assert done == [first, second]
    stamps = {name: (tmp_path / name / "metrics.json").stat().st_mtime_ns for name in done}

    done.clear()
    outcomes = run(cells, tmp_path, executor=InProcess(_counting(done, fail=third)))
    assert [one.state for one in outcomes] == ["kept", "kept", "failed"]
    assert "a bug" in outcomes[2].error

    done.clear()
    outcomes = run(cells, tmp_path, executor=InProcess(_counting(done)))
    assert done == [third]
    assert [one.state for one in outcomes] == ["kept", "kept", "finished"]
    for name, stamp in stamps.items():
        assert (tmp_path / name / "metrics.json").stat().st_mtime_ns == stamp
    manifest = json.loads((tmp_path / "matrix.json").read_text())
    assert list(manifest["runs"]) == [first, second, third]
    assert manifest["runs"][third] == {"recipe": "baseline"}


def test_shared_stages_run_once_in_a_matrix(tmp_path: Path) -> None:
    (tmp_path / "slow.yaml").write_text("extends: sd\nstages: {all: {optimizer: {lr: 1.0e-4}}}\n")
    fields = {**TINY, **steps(1, "mimicry", "head", "all")}
    fields["networks.teacher.extractor.weights"] = "random"
    cells = plan(["sd", tmp_path / "slow.yaml"], fields, seeds=1)
    outcomes = run(cells, tmp_path / "out")
    assert [one.state for one in outcomes] == ["finished", "finished"]
    trained = sorted(p.relative_to(tmp_path / "out").as_posix() for p in tmp_path.rglob("csv"))
    assert trained == [
        "sd-n64-s0/stages/1-mimicry/csv",
        "sd-n64-s0/stages/2-head/csv",
        "sd-n64-s0/stages/3-all/csv",
        "slow-n64-s0/stages/3-all/csv",
    ]


def test_another_config_may_not_take_the_runs(tmp_path: Path) -> None:
    (cell,) = _tiny()
    folder = tmp_path / cell.folder
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(cell.experiment))
    (other,) = _tiny(**{"stages.supervised.max_steps": 5})
    with pytest.raises(RunError, match=r"stages.supervised.max_steps: 1 became 5"):
        run([other], tmp_path)


def test_several_processes_and_a_failed_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS, "--stages.supervised.max_steps", "1", "--seeds", "2"]
    words += ["--out", str(tmp_path / "out")]
    broken = tmp_path / "out" / "baseline-n64-s1"
    broken.mkdir(parents=True)
    (broken / "thesis.tex").write_text("precious")  # this run cannot have its folder
    with pytest.raises(SystemExit) as caught:
        main([*words, "--jobs", "2"])
    shown = capsys.readouterr()
    assert caught.value.code == 2
    assert "1 of 2 runs failed" in shown.err
    assert "thesis.tex" in shown.err
    assert "Traceback" not in shown.err
    assert (tmp_path / "out/baseline-n64-s0/metrics.json").is_file()


@pytest.mark.parametrize("command", ["compare", "report"])
def test_a_command_is_the_function_of_its_name(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = getattr(spiritseg, command)
    given: dict[str, Any] = {}

    def record(**arguments: Any) -> Any:
        given.update(arguments)
        return SimpleNamespace(page="")

    monkeypatch.setattr(sys.modules["spiritseg.compare"], command, record)
    with pytest.raises(SystemExit, match="0"):
        main([command, "one", "--out", "there", "--target.root", "mine"])
    parameters = inspect.signature(function).parameters
    assert given.keys() == parameters.keys() - {"resamples"}  # which is of tests alone
    assert given["overrides"] == {"target.root": "mine"}
    for name in parameters.keys() & given.keys() - {"recipes", "runs", "overrides", "out"}:
        assert given[name] == parameters[name].default, name


def test_compare_returns_a_matrix_that_prints(tmp_path: Path) -> None:
    (cell,) = _tiny()
    (tmp_path / cell.folder).mkdir()
    (tmp_path / cell.folder / "metrics.json").touch()
    fields = {**TINY, **steps(1, "supervised")}
    found = spiritseg.compare(["baseline"], fields, seeds=1, out=tmp_path)
    assert [one.state for one in found.outcomes] == ["kept"]
    assert repr(found).splitlines()[-2].split()[1::2] == [cell.folder, "kept", "0"]
    assert f"<td>{cell.folder}</td>" in found._repr_html_()


def test_runs_of_other_images_get_no_company(tmp_path: Path) -> None:
    def save(path: Path, values: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)

    generator = np.random.default_rng(0)
    for number in range(8):
        mask = np.zeros((64, 72), np.uint8)
        mask[30 + number :] = 1
        save(tmp_path / f"road/masks/{number}.png", mask)
        pixels = generator.integers(0, 256, (64, 72, 3), dtype=np.uint8)
        save(tmp_path / f"road/images/{number}.png", pixels)
    data: dict[str, Any] = {
        "target.dataset": "folder",
        "target.root": str(tmp_path / "road"),
        "target.subset": "first:4",
        "target.val": "fraction:0.2",
    }
    out = tmp_path / "out"
    (first,) = run(_tiny(**data), out)
    assert first.state == "finished"
    for path in (tmp_path / "road/masks").iterdir():
        save(path, np.flipud(np.array(Image.open(path))[:60].repeat(2, 0)[:64]))
    cells = _tiny(seeds=2, **data)
    with pytest.raises(RunError, match=r"begun with other files .*\n.*images\..*pixels"):
        run(cells, out)
    assert not (out / cells[1].folder).exists()
    (kept,) = run(cells[:1], out)  # what is finished is only read
    assert kept.state == "kept"
