"""spiritseg push."""

from __future__ import annotations

from spiritseg.cli.words import make_parser

_MORE = """
A model card (README.md) is written beside the bundle; its licence is yours to fill in. The Hub's
token comes from `hf auth login` or HF_TOKEN. a/b is a repository, unless there is a folder of that
name; a folder may always be written ./a/b.

  spiritseg push runs/esd you/road-student --private
  spiritseg push runs/esd /mnt/models/road-student
"""


def run(words: list[str]) -> None:
    """Copy a student to the Hugging Face Hub, or to any folder."""
    parser = make_parser("push", run)
    parser.epilog = _MORE
    parser.add_argument("student", metavar="STUDENT", help="a run's folder, or a bundle")
    parser.add_argument("target", help="owner/name, hf://owner/name, or a folder")
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    parser.add_argument("--revision", help="branch of the repository")
    parser.add_argument("--force", action="store_true", help="replace another bundle")
    parser.add_argument("--trust", action="store_true", help="import the bundle's own classes")
    options = parser.parse_args(words)
    from spiritseg.deploy.hub import push

    print(
        push(
            options.student,
            options.target,
            private=options.private,
            revision=options.revision,
            force=options.force,
            trust=options.trust,
        )
    )
