"""Registries: names, near names, entries of files and of installed packages."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from spiritseg.errors import ConfigError
from spiritseg.registry import Registry


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry[int]:
    def points(group: str) -> list[EntryPoint]:
        values = {"seven": "numbers_of_a_user:SEVEN", "broken": "no_such_package:X"}
        return [EntryPoint(name, value, group) for name, value in values.items()]

    monkeypatch.setattr("spiritseg.registry.entry_points", points)
    numbers: Registry[int] = Registry("number", "spiritseg.numbers", int)
    numbers.register("one", 1)
    return numbers


def test_an_entry_is_found_by_its_name_and_never_registered_twice(
    registry: Registry[int],
) -> None:
    assert registry["one"] == 1
    with pytest.raises(ValueError, match="'one' is registered twice"):
        registry.register("one", 2)


def test_a_package_s_entry_is_listed_at_once_and_imported_when_used(
    registry: Registry[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(registry) == ["one", "seven", "broken"]
    assert "seven" in registry
    assert len(registry) == 3
    (tmp_path / "numbers_of_a_user.py").write_text("SEVEN = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert registry["seven"] == 7
    with pytest.raises(ConfigError, match="number 'broken' cannot be imported: no_such_package:X"):
        registry["broken"]


def test_a_file_s_entry_is_found_by_its_path(registry: Registry[int], tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import dataclasses\nTWO = 2\nWORD = 'two'\n")
    assert registry[f"{file}:TWO"] == 2
    assert list(registry) == ["one", "seven", "broken"]  # a path is no name of the project's
    with pytest.raises(ConfigError, match=r"unknown name 'TVO'\. Did you mean TWO"):
        registry[f"{file}:TVO"]
    with pytest.raises(ConfigError, match="expected type int, got str"):
        registry[f"{file}:WORD"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("onne", "unknown number 'onne'. Did you mean one? Choices: broken, one, seven."),
        ("x" * 5000, "unknown number 'xxx"),
        ("nowhere.py:ONE", "cannot be imported: FileNotFoundError"),
        ("x" * 5000 + ".py:ONE", "cannot be imported: OSError"),
    ],
)
def test_an_unknown_name_is_one_clear_error(
    registry: Registry[int], name: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        registry[name]
    assert len(str(caught.value)) < 700


def test_a_file_that_fails_is_named_and_read_again_when_mended(
    registry: Registry[int], tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text("1 / 0\n")
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        registry[f"{file}:ONE"]
    file.write_text("ONE = 11\n")
    assert registry[f"{file}:ONE"] == 11
