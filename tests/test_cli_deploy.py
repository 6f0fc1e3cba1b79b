"""spiritseg export, predict and bench: the words reach the functions; errors are one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spiritseg.cli import main
from spiritseg.deploy.predict import PredictReport


def _call(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(words)
    shown = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, shown.out, shown.err


@pytest.mark.parametrize("command", ["export", "predict", "bench"])
def test_help_shows_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _call([command, "--help"], capsys)
    assert code == 0
    assert f"spiritseg {command} " in out.split("options:")[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["export", "nowhere"], "nowhere"),
        (["export", "nowhere", "--precision", "int8"], "--calibrate"),
        (["export", "nowhere", "stray"], "stray"),
        (["predict", "nowhere.onnx", ".", "--out", "o", "--kind", "mas"], "mask"),
        (["predict", "nowhere.onnx"], "INPUT"),
        (["predict", "nowhere.onnx", "nothing.jpg", "--out", "o"], "nothing.jpg"),
        (["bench", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_clear_error(
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = _call(words, capsys)
    assert code == 2
    assert err.startswith("spiritseg: error: ")
    assert said in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_predict_hands_its_options_on_and_lists_what_was_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def predict(*words: object, **options: object) -> PredictReport:
        given.update(options, words=words)
        return PredictReport(3, 2, [], [("a/b.jpg", "the file is empty")], 1.5)

    monkeypatch.setattr("spiritseg.deploy.predict.predict", predict)
    words = ["predict", "s.onnx", "in", "more", "--out", "o", "--kind", "overlay", "--batch", "4"]
    code, out, _ = _call([*words, "--workers", "3", "--opacity", "0.7"], capsys)
    assert code == 0
    assert given["words"] == ("s.onnx", ["in", "more"], "o", "overlay")
    assert (given["batch"], given["workers"], given["opacity"]) == (4, 3, 0.7)
    assert "3 frames in 1.5 s, 2.0 a second" in out
    assert "2 outputs were there already" in out
    assert "a/b.jpg: the file is empty" in out
