"""spiritseg pull."""

from __future__ import annotations

from spiritseg.cli.words import make_parser

_MORE = """
The bundle is verified before it appears in its folder; hub.json there records its commit.

  spiritseg pull you/road-student students/road
"""


def run(words: list[str]) -> None:
    """Download a student from the Hugging Face Hub."""
    parser = make_parser("pull", run)
    parser.epilog = _MORE
    parser.add_argument("repository", help="owner/name or hf://owner/name")
    parser.add_argument("folder", metavar="DIR", help="where the bundle goes")
    parser.add_argument("--revision", help="branch, tag or commit of the repository")
    parser.add_argument("--force", action="store_true", help="replace another bundle")
    parser.add_argument("--trust", action="store_true", help="import the bundle's own classes")
    options = parser.parse_args(words)
    from spiritseg import pull

    print(pull(**vars(options)))
