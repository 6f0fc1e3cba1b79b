"""spiritseg push."""

from __future__ import annotations

from spiritseg.cli.words import make_parser

_MORE = """
A model card (README.md) is added if the repository has none; state your licence in it. The token
is that of `hf auth login` or HF_TOKEN. A bundle is a plain folder: to copy it elsewhere, use cp -r.

  spiritseg push runs/esd you/road-student --private
"""


def run(words: list[str]) -> None:
    """Upload a student to the Hugging Face Hub."""
    parser = make_parser("push", run)
    parser.epilog = _MORE
    parser.add_argument("student", metavar="STUDENT", help="a bundle, or the folder of a run")
    parser.add_argument("repository", help="owner/name or hf://owner/name")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument("--revision", help="existing branch of the repository")
    parser.add_argument("--trust", action="store_true", help="import the bundle's own classes")
    options = parser.parse_args(words)
    from spiritseg import push

    print(push(**vars(options)))
