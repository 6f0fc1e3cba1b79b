"""One run of a matrix in a process of its own: ``python -m spiritseg.compare.cell``."""

from __future__ import annotations

import json
import sys

from spiritseg.compare.pools import Task, do
from spiritseg.errors import SpiritsegError
from spiritseg.stopping import terminable


def main() -> int:
    """Do the task that comes as JSON on standard input; 0 done, 2 for a user's mistake."""
    try:
        with terminable():
            do(Task(**json.load(sys.stdin)))
    except SpiritsegError as error:
        print(f"spiritseg: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
