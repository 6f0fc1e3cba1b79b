"""CONTRIBUTING's recipes, run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

from spiritseg import distill, evaluate, load, load_experiment, report
from spiritseg.errors import ConfigError

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
SCENES = {"train": 4, "val": 2, "test": 2, "size": [96, 128]}
SMALL = {
    "target.dataset": "scenes",
    "target.scenes": SCENES,
    "target.subset": "all",
    "proximity.dataset": "scenes",
    "proximity.scenes": SCENES,
    "input.crop": 64,
    "evaluation.latency": False,
    "evaluation.pictures": 0,
    "trainer.progress": False,
    "networks.teacher.extractor.weights": "random",
}


def write(title: str) -> None:
    """Write the block with a title to the working directory."""
    found = re.search(rf"```\w+ title={re.escape(title)}\n(.*?)```", TEXT, re.DOTALL)
    assert found is not None, f"CONTRIBUTING.md has no block {title}"
    Path(title).write_text(found[1])


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_loss_of_ones_own() -> None:
    write("cwd.py")
    write("logits-cwd.yaml")
    steps = {"stages.teacher.max_steps": 1, "stages.distil.max_steps": 2}
    experiment = load_experiment("logits-cwd.yaml", {**SMALL, **steps})
    assert list(experiment.stages["distil"].losses) == ["cwd.py:CWD"]
    result = distill(experiment, "run")
    assert 0 < result.metrics["stages"]["distil"]["loss"] < 100
    assert load_experiment("run/config.yaml") == experiment
    assert distill(experiment, "run").metrics["test"] == result.metrics["test"]  # finished
    with pytest.raises(ConfigError, match=r"names Python files \(cwd.py:CWD\)"):
        evaluate("run")
    assert evaluate("run", trust=True)["mIOU"] == result.metrics["test"]["mIOU"]
    with pytest.raises(ConfigError, match=r"names Python files \(cwd.py:CWD\)"):
        report("run", latency=False)
    Path("cwd.py").unlink()  # the student needs nothing of it
    assert load("run/student")(torch.rand(3, 96, 128)).shape == (96, 128)


def test_options_of_a_loss_of_ones_own_are_checked() -> None:
    write("cwd.py")
    write("logits-cwd.yaml")
    name = "stages.distil.losses.cwd.py:CWD"
    wrong = {f"{name}.temperature": 0, f"{name}.wieght": 1, "seed": "x"}
    with pytest.raises(ConfigError) as caught:
        load_experiment("logits-cwd.yaml", {**SMALL, **wrong})
    for part in (
        "3 problem(s)",
        f"{name}.temperature: expected more than 0, got 0",
        f"{name}.wieght: unknown field 'wieght'. Did you mean weight?",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("cwd.py:CWD", "cannot be imported: FileNotFoundError"),
        ("odd.py:CWD", "odd.py: unknown name 'CWD'. Did you mean CWT?"),
        ("odd.py:CWT", "expected type Loss, got int"),
        ("cwd", "unknown loss 'cwd'"),
    ],
)
def test_a_loss_that_is_none_is_one_clear_error(loss: str, said: str) -> None:
    Path("odd.py").write_text("CWT = 3")
    fields = {"extends": "logits", "stages": {"distil": {"losses": {loss: {}}}}}
    Path("mine.yaml").write_text(yaml.safe_dump(fields))
    with pytest.raises(ConfigError, match="problem") as caught:
        load_experiment("mine.yaml", SMALL)
    assert said in str(caught.value)
