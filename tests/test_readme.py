"""The README's Python runs as it stands, but for its folders and the number of steps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

README = Path(__file__).resolve().parents[1] / "README.md"
TINY = """
extends: esd
target: {subset: "first:4"}
input: {crop: 64}
networks: {teacher: {extractor: {weights: random}}}
stages:
  mimicry: {max_steps: 2, batch_size: 2, num_views: 1}
  head: {max_steps: 2, batch_size: 2, num_views: 1}
  all: {max_steps: 2, batch_size: 2}
evaluation: {latency: false, pictures: 0}
trainer: {progress: false, accelerator: cpu}
"""


def test_the_ten_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for folder in (split, f"{split}annot"):
            (tmp_path / "camvid" / folder).mkdir(parents=True)
        for number in range(4):
            name = f"0001TP_0085{number}0"
            pixels = generator.integers(0, 256, (72, 96, 3), dtype=np.uint8)
            mask = np.where(np.arange(72)[:, None] > 40, 3, 1).repeat(96, 1).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"camvid/{split}/{name}.jpg")
            Image.fromarray(mask).save(tmp_path / f"camvid/{split}annot/{name}.png")
            (tmp_path / "kitti").mkdir(exist_ok=True)
            Image.fromarray(pixels[:, ::-1]).save(tmp_path / f"kitti/{split}{number}.png")
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[0]
    code = code.replace('"esd", {', '"tiny.yaml", {').replace("0001TP_008550", "0001TP_008510")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    names: dict[str, Any] = {}
    exec(code, names)  # the README's own code
    assert names["mask"].shape == (72, 96)
    with Image.open("overlay.png") as overlay:
        assert overlay.size == (96, 72)
