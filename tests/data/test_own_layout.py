"""A data set of one's own, by CONTRIBUTING.md's steps alone: its text is what runs here."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spiritseg.cli import main
from spiritseg.config import Target
from spiritseg.data import Layout, SplitLayout
from spiritseg.data.domains import open_target_all
from spiritseg.errors import ConfigError, DataError
from spiritseg.recipes import load_experiment
from spiritseg.training.evaluate import evaluate

Write = Callable[..., Path]
CONTRIBUTING = Path(__file__).resolve().parents[2] / "CONTRIBUTING.md"
SMALL = """--input.crop 32 --stages.supervised.max_steps 2 --stages.supervised.batch_size 2
    --evaluation.latency false --evaluation.pictures 0 --trainer.progress false
    --trainer.accelerator cpu"""


def _section() -> tuple[str, list[str]]:
    """Return the Python file of "Add a data set" and its command lines."""
    text = CONTRIBUTING.read_text("utf-8").partition("## Add a data set")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    (commands,) = re.findall(r"```bash\n(.*?)```", text, re.S)
    return code, commands.splitlines()


@pytest.fixture
def bdd100k(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_image: Write, write_mask: Write
) -> Path:
    """BDD100K with 72 training and 3 validation images, and the file of its layout beside it."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "bdd100k"
    for split, count in (("train", 72), ("val", 3)):
        for i in range(count):
            write_image(root / f"images/100k/{split}/{split}-{i:04d}.jpg", (64, 96))
            mask = root / f"labels/sem_seg/masks/{split}/{split}-{i:04d}.png"
            write_mask(mask, (*range(19), 255), (64, 96))
    (tmp_path / "bdd100k.py").write_text(_section()[0])
    return root


def test_a_data_set_of_ones_own_is_trained_and_evaluated_on(
    bdd100k: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, distil, evaluation = (shlex.split(line, comments=True)[1:] for line in _section()[1])
    small = SMALL.split()
    for words in ([*distil, *small], evaluation):
        capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            main(words)
        assert not done.value.code
    shown = capsys.readouterr().out
    assert "motorcycle" in shown
    with pytest.raises(ConfigError, match=r"bdd100k\.py:BDD100K.*--trust"):
        evaluate("run")
    named = {"target.dataset": "bdd100k.py:BDD100K"}  # by the user: no trust is needed
    scores = evaluate("run", named)
    assert scores["images"] == 3
    assert len(scores["IoU"]) == 19


def test_a_label_format_of_ones_own(bdd100k: Path) -> None:
    Path("mine.py").write_text(
        "import dataclasses\nimport numpy as np\nfrom PIL import Image\nimport bdd100k\n"
        "def red(path):\n    return np.array(Image.open(path))[..., 0]\n"
        "RED = dataclasses.replace(bdd100k.BDD100K, read_labels=red)\n"
    )
    for path in bdd100k.rglob("*.png"):
        grey = np.array(Image.open(path))
        Image.fromarray(np.stack([grey, grey * 0 + 7, grey * 0], -1)).save(path)
    fields = {"target.root": "bdd100k", "input.crop": 32, "target.subset": "first:4"}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path.cwd()))
        own = load_experiment("baseline", {**fields, "target.dataset": "mine.py:RED"})
        opened = open_target_all(own.target, own.input)
    assert opened.train[0][1][0, :3].tolist() == [1, 0, 0]
    plain = load_experiment("baseline", {**fields, "target.dataset": "bdd100k.py:BDD100K"})
    with pytest.raises(DataError, match="is a coloured picture"):
        open_target_all(plain.target, plain.input)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"splits": {"train": "train"}}, "names of train, test and perhaps val, got"),
        ({"splits": {"train": "a", "test": "b", "dev": "c"}}, "'dev': 'c'"),
        ({"masks": "masks"}, r"expected \{split\} in it, got 'masks'"),
    ],
)
def test_a_layout_that_cannot_work_is_refused(fields: dict[str, object], said: str) -> None:
    given: dict[str, object] = {
        "images": "images/{split}",
        "masks": "masks/{split}",
        "splits": {"train": "train", "test": "val"},
        "classes": "camvid",
    }
    with pytest.raises(ConfigError, match=said):
        SplitLayout(**{**given, **fields})  # type: ignore[arg-type]


def test_unknown_layouts_list_the_choices(bdd100k: Path) -> None:
    for dataset, said in (
        ("camvd", r"unknown data set 'camvd'\. Did you mean camvid.*path/to/file\.py:NAME"),
        ("bdd100k.py:BDD", "unknown name 'BDD'. Did you mean BDD100K"),
        ("bdd100k.py:NAMES", f"expected type {Layout.__name__}, got list"),
    ):
        target = Target(dataset=dataset, root="bdd100k")
        with pytest.raises(ConfigError, match=said):
            open_target_all(target, load_experiment("baseline", {"target.root": "x"}).input)
