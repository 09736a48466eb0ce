"""``megaclass serve``: a trained model behind HTTP."""

import signal
import socket
import sys

from megaclass.cli.common import read_options, tell
from megaclass.errors import UserError

_OPTIONS = {
    "checkpoint": ("best", "of a run: best, latest or a step-NNNNNNNN"),
    "gallery": ("", "directory of a gallery, for /search"),
    "align": ("", "face detector (YuNet, ONNX): the model sees the largest face of each photograph"),
    "threshold": (float, "cosine at or above which two images show one identity, if not the gallery's or the run's"),
    "host": ("127.0.0.1", "address to listen at; 0.0.0.0: all of this machine"),
    "port": (8000, "0: any that is free"),
    "key-file": ("", "file of keys, one a line; clients send one: Authorization: Bearer KEY"),
    "device": ("auto", "auto, cpu, cuda or cuda:1"),
    "threads": (0, "CPU threads of the model; 0: all cores"),
    "batch-size": (32, "images that the model takes at once, at most"),
    "deadline-ms": (5, "how long an image may wait for others"),
    "queue": (64, "requests at work at once; others are told to come again (503)"),
    "max-mb": (20, "MB of a request"),
}  # fmt: skip
_OF_MODEL = ("checkpoint", "device", "threads", "align")


def serve(words: list[str]) -> None:
    options = read_options(
        words,
        "megaclass serve RUN [--gallery DIR] [--align DETECTOR] [--host 127.0.0.1] [--port 8000] [--key-file FILE] ...",
        "A trained model behind HTTP: /embed, /compare, /classify and /search take images, / is a page for people, "
        "/health and /metrics are for those who watch it. SIGTERM lets the requests at work end first.",
        {"run": "run directory, checkpoint, bundle or exported model"},
        _OPTIONS,
    )
    if not (options.batch_size and options.queue and options.max_mb):
        raise UserError("--batch-size, --queue and --max-mb: 0 lets nothing in; give 1 or more")
    try:
        import uvicorn

        from megaclass.serve.app import build
    except ModuleNotFoundError as error:
        raise UserError(f"serve needs {error.name}: pip install 'megaclass[serve]'") from None
    from megaclass.gallery.gallery import Gallery
    from megaclass.inference.load import load
    from megaclass.serve.service import Service
    from megaclass.serve.uploads import Limits, read_keys

    host, keys = options.host, read_keys(options.key_file) if options.key_file else []
    limits = Limits(size=options.max_mb * 1_000_000, requests=options.queue)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Where the protocol is not named, asyncio leaves Nagle's algorithm on: 40 ms a request.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, options.port))  # whoever asks before the model is there is refused
        except (OSError, OverflowError) as error:
            raise UserError(f"--port: {host}:{options.port} cannot be had ({error}); name another") from None
        model = load(options.run, **{name: getattr(options, name) for name in _OF_MODEL})
        gallery = Gallery(options.gallery, model) if options.gallery else None
        of = (options.threshold, gallery.threshold if gallery else None, model.threshold)
        threshold, wait_s = next((one for one in of if one is not None), None), options.deadline_ms / 1000
        app = build(Service(model, limits, threshold, keys, gallery, options.batch_size, wait_s))
        # Warnings go where those of all commands go, and nothing is logged of a request.
        config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=10)
        signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again once all have their answers
        listening.listen()
        name, port = listening.getsockname()[:2]
        tell(f"serving   {options.run} at http://{f'[{name}]' if ':' in name else name}:{port}", sys.stderr)
        if not keys and not name.startswith(("127.", "::1")):
            tell("Warning: whoever reaches this address may ask; --key-file asks for a key", sys.stderr)
        uvicorn.Server(config).run(sockets=[listening])
