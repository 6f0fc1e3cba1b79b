"""spiritseg serve."""

from __future__ import annotations

from spiritseg.cli.words import make_parser

_MORE = """
An image or a short video that is dropped on the page is segmented by every student, and two of
them are compared with a slider. Nothing is kept. The same for programs:

  curl -F file=@image.jpg 'http://127.0.0.1:7860/api/predict?student=esd&mask=1'
  curl http://127.0.0.1:7860/api/students

Requests from web pages of other sites are refused. There is no login: listen on other addresses
than this machine's only behind one. Behind a proxy, give its name: --allow-host road.example.org
"""


def run(words: list[str]) -> None:
    """Serve students on a web page, with a JSON endpoint beside it."""
    parser = make_parser("serve", run)
    parser.epilog = _MORE
    parser.add_argument("students", nargs="+", metavar="STUDENT", help="run, bundle or export")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="further host name under which it is reached; may be given several times",
    )
    parser.add_argument("--port", type=int, default=7860, help="0: any free one")
    parser.add_argument("--max-mib", type=float, default=32, help="of an upload, in MiB")
    parser.add_argument("--max-megapixels", type=float, default=10, help="of an image or frame")
    parser.add_argument("--max-seconds", type=float, default=30, help="of a video")
    parser.add_argument("--threads", type=int, help="of the network")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--trust", action="store_true", help="a .pt2, or a bundle's own classes")
    options = parser.parse_args(words)
    from spiritseg.deploy.serve.server import serve
    from spiritseg.deploy.serve.uploads import Limits

    limits = Limits(options.max_mib, options.max_megapixels, options.max_seconds)
    serve(
        options.students,
        options.host,
        options.port,
        names=options.allow_host,
        limits=limits,
        threads=options.threads,
        device=options.device,
        trust=options.trust,
    )
