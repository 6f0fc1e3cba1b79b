"""spiritseg pull."""

from __future__ import annotations

from spiritseg.cli.words import make_parser

_MORE = """
The bundle is checked against its checksums before it appears in its folder. a/b is a repository,
unless there is a folder of that name; a folder may always be written ./a/b.

  spiritseg pull you/road-student students/road
"""


def run(words: list[str]) -> None:
    """Copy a student from the Hugging Face Hub, or from any folder."""
    parser = make_parser("pull", run)
    parser.epilog = _MORE
    parser.add_argument("source", help="owner/name, hf://owner/name, or a folder")
    parser.add_argument("folder", metavar="DIR", help="where the bundle goes")
    parser.add_argument("--revision", help="branch, tag or commit of the repository")
    parser.add_argument("--force", action="store_true", help="replace another bundle")
    parser.add_argument("--trust", action="store_true", help="import the bundle's own classes")
    options = parser.parse_args(words)
    from spiritseg.deploy.hub import pull

    print(
        pull(
            options.source,
            options.folder,
            revision=options.revision,
            force=options.force,
            trust=options.trust,
        )
    )
