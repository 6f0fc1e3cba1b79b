"""spiritseg serve."""

from __future__ import annotations

from spiritseg.cli.words import make_parser

_MORE = """
The page segments an uploaded image with the chosen student: overlay, class shares, latency, and the
mask to download. Uploads and results are deleted after 15 minutes. The same for programs:

  from gradio_client import Client, handle_file
  Client("http://127.0.0.1:7860").predict(handle_file("image.jpg"), "esd", api_name="/segment")

or with curl, in two steps: upload a file; then pass the path that this returns, the student, and
whether the answer shall contain the mask (class indices as a base64-encoded PNG):

  curl -F files=@image.jpg http://127.0.0.1:7860/gradio_api/upload
  curl -H 'Content-Type: application/json' http://127.0.0.1:7860/gradio_api/run/segment \\
    -d '{"data": [{"path": "/tmp/.../image.jpg"}, "esd", true]}'

Requests from web pages of other sites are refused. There is no login: listen on other addresses
than this machine's only behind one. Behind a proxy, give its name: --allow-host road.example.org
"""


def run(words: list[str]) -> None:
    """Serve students on a web page with an API."""
    parser = make_parser("serve", run)
    parser.epilog = _MORE
    parser.add_argument("students", nargs="+", metavar="STUDENT", help="run, bundle or export")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="further host name of the server; repeatable",
    )
    parser.add_argument("--port", type=int, default=7860, help="0: any free one")
    parser.add_argument("--max-mib", type=float, default=32, help="size of an upload")
    parser.add_argument("--max-megapixels", type=float, default=10, help="size of an image")
    parser.add_argument("--threads", type=int, help="CPU threads of a forward pass")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--trust", action="store_true", help="open a .pt2, or a bundle with classes of your own"
    )
    options = parser.parse_args(words)
    from spiritseg.serve import serve

    serve(**vars(options))
