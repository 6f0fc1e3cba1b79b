"""spiritseg export, predict and bench: the words reach the functions; errors are one line."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

import spiritseg
from spiritseg.cli import main
from spiritseg.predict.predict import PredictReport


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
        (["bench", "nowhere", "--threads", "-1"], "1 or more, got -1"),
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


def test_predict_lists_what_was_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = PredictReport(Path("o"), 3, 2, [], [("a/b.jpg", "the file is empty")], 1.5)
    home = sys.modules[spiritseg.predict.__module__]
    monkeypatch.setattr(home, "predict", lambda **options: report)
    code, out, _ = _call(["predict", "s.onnx", "in", "--out", "o"], capsys)
    assert code == 0
    assert "3 frames in 1.5 s, 2.0 a second" in out
    assert "2 outputs existed and were kept" in out
    assert "a/b.jpg: the file is empty" in out


@pytest.mark.parametrize(
    ("command", "words", "wanted"),
    [
        ("bench", "a b", {"students": ["a", "b"]}),
        (
            "bench",
            "a --size 64 96 --size 32 48 --runtimes torch --threads 2 --precisions fp16 --rounds 4 "
            "--trust --quiet",
            {"students": ["a"], "sizes": [(64, 96), (32, 48)], "runtimes": ["torch"], "threads": 2,
             "precisions": ["fp16"], "rounds": 4, "trust": True, "quiet": True},
        ),
        ("export", "a", {"student": "a", "overrides": {}}),
        (
            "export",
            "a --format pt2 --precision fp16 --size 64 96 --out b.pt2 --argmax --fixed --bare "
            "--calibrate c d --images e --limit 3 --trust --target.root f",
            {"student": "a", "format": "pt2", "precision": "fp16", "size": (64, 96),
             "out": "b.pt2", "argmax": True, "fixed": True, "bare": True, "calibrate": ["c", "d"],
             "images": ["e"], "limit": 3, "trust": True, "overrides": {"target.root": "f"}},
        ),
    ],
)  # fmt: skip
def test_words_become_the_function_s_arguments(
    command: str,
    words: str,
    wanted: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[str, Any] = {}
    function = getattr(spiritseg, command)
    home = sys.modules[function.__module__]

    def called(**options: Any) -> str:
        given.update(options)
        return "the report"

    monkeypatch.setattr(home, command, called)
    code, out, _ = _call([command, *words.split()], capsys)
    assert (code, out, given) == (0, "the report\n", wanted)
    if len(words) > 5:  # every argument of the function is a word of the command
        assert set(given) == set(inspect.signature(function).parameters)
