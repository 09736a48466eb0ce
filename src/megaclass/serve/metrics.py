"""What is counted of requests, for Prometheus, and the headers that every reply has."""

import time

from prometheus_client import CollectorRegistry, Gauge, Histogram, ProcessCollector
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The page loads nothing from elsewhere; its previews of photographs are blobs.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)  # memory, processor time, open files
BATCHES = Histogram("megaclass_batch_images", "Of a batch", registry=REGISTRY, buckets=[1, 2, 4, 8, 16, 32, 64])
AT_WORK = Gauge("megaclass_requests_at_work", "Requests that are read or worked on", registry=REGISTRY)
_SECONDS = Histogram("megaclass_request_seconds", "To the answer", ["path", "status"], registry=REGISTRY)


def watched(app: ASGIApp) -> ASGIApp:
    """The application, its replies counted by endpoint, and with the headers above."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
                path = getattr(scope.get("route"), "path", "other")
                _SECONDS.labels(path, message["status"]).observe(time.perf_counter() - began)
            await send(message)

        await app(scope, receive, answer)

    return call
