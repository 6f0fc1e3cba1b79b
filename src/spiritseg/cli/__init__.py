"""The command line: each command a thin wrapper of the Python function of its name."""

from __future__ import annotations

import errno
import os
import select
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import NoReturn

from spiritseg import __version__
from spiritseg.errors import ConfigError, SpiritsegError, unknown
from spiritseg.stopping import Terminated, terminable

__all__ = ["COMMANDS", "main"]

# In the order of a user's way; each is the function `run` of spiritseg.cli.NAME.
COMMANDS = (
    "demo",
    "distill",
    "evaluate",
    "export",
    "predict",
    "bench",
    "serve",
    "push",
    "pull",
    "compare",
    "report",
    "doctor",
    "proximity",
    "recipes",
)
_CONTINUED = ("demo", "distill", "predict", "compare")  # by the same command


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 done, 2 a user's mistake, 130 Ctrl-C, 141 unread, 143 SIGTERM.

    Args:
        argv: the words after the program's name; by default those of this process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with terminable(), _short_warnings():
            _run(words)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _is_closed(sys.stdout.fileno()):
            raise  # another pipe, such as a data loader's
        # Whoever read the output has gone (| head); Python would complain again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except SpiritsegError as error:
        print(f"spiritseg: error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        path = os.fsdecode(error.filename) if error.filename else ""
        print(
            f"spiritseg: error: {path[:60]}...: expected a path of names of at most 255 bytes, got "
            f"a longer one. Choose a shorter one.",
            file=sys.stderr,
        )
        sys.exit(2)
    except (KeyboardInterrupt, Terminated) as stop:
        word, code = (
            ("interrupted", 130) if isinstance(stop, KeyboardInterrupt) else ("stopped", 143)
        )
        goes_on = "; the same command continues" if words and words[0] in _CONTINUED else ""
        print(f"\nspiritseg: {word}{goes_on}.", file=sys.stderr)
        sys.exit(code)
    sys.exit(0)


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Show warnings, such as of an old field name, as one line without a place in the code."""
    usual = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"spiritseg: warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _is_closed(pipe: int) -> bool:
    """Say whether the other end of a pipe that is written to has gone."""
    poll = select.poll()
    poll.register(pipe, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _run(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        _print_help()
    elif words[0] == "--version":
        print(__version__)
    elif words[0] in COMMANDS:
        _command(words[0])(words[1:])
    else:
        raise ConfigError(unknown("command", words[0], COMMANDS, "See spiritseg --help."))


def _command(name: str) -> Callable[[list[str]], None]:
    found: Callable[[list[str]], None] = import_module(f"spiritseg.cli.{name}").run
    return found


def _print_help() -> None:
    print(f"spiritseg {__version__}: distil a compact segmentation network from a bulky one.\n")
    print("usage: spiritseg COMMAND [OPTION ...]\n\ncommands:")
    for name in COMMANDS:
        print(f"  {name:10} {(_command(name).__doc__ or '').splitlines()[0]}")
    print("\nspiritseg COMMAND --help says more; python -m spiritseg is the same.")
