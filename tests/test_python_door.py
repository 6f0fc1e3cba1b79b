"""Every command is a function at the top of the package, with the command's arguments."""

from __future__ import annotations

import argparse
import inspect
import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest

import spiritseg
from spiritseg.cli import COMMANDS

# What a terminal has and a function has not, and the reverse.
TERMINAL = {"help", "help_all", "print_config"}
PYTHON = {"overrides", "show", "progress", "resamples"}


class _ParserError(Exception):
    """Carries a command's parser out of it."""


def _options(command: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return names and defaults of a command's options."""

    def stop(parser: argparse.ArgumentParser, *given: object) -> None:
        raise _ParserError(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
    with pytest.raises(_ParserError) as caught:
        import_module(f"spiritseg.cli.{command}").run([])
    return {action.dest: action for action in caught.value.args[0]._actions}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_and_its_function_take_the_same(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = getattr(spiritseg, command)
    assert callable(function)
    parameters = inspect.signature(function).parameters
    options = _options(command, monkeypatch)
    assert options.keys() - TERMINAL - PYTHON == parameters.keys() - PYTHON
    for name in options.keys() & parameters.keys():
        action, parameter = options[name], parameters[name]
        required = action.required and action.nargs != "*"
        assert required == (parameter.default is inspect.Parameter.empty), name


def test_functions_stay_when_modules_of_their_names_are_imported() -> None:
    code = (
        "import spiritseg, spiritseg.compare, spiritseg.doctor, spiritseg.demo, spiritseg.student\n"
        "for name in spiritseg.__all__:\n"
        "    if name != 'losses': assert callable(getattr(spiritseg, name)), name"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
