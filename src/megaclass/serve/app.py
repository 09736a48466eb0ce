"""The endpoints: what they take and give, and what is told of errors. Shapes: N = images of a request, D = columns."""

import asyncio
import hashlib
import secrets
from pathlib import Path
from typing import Annotated, Any

import torch.nn.functional as F
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp
from torch import Tensor

from megaclass import __version__
from megaclass.data.dataset import DamagedSampleError
from megaclass.inference.model import GivenLogits
from megaclass.serve import metrics
from megaclass.serve.service import Service
from megaclass.serve.uploads import BODY, read_images

router = APIRouter()
Json = dict[str, Any]


def build(service: Service) -> ASGIApp:
    """The ASGI application."""
    errors = (HTTPException, RequestValidationError, DamagedSampleError, ClientDisconnect, Exception)
    app = FastAPI(
        title="megaclass",
        version=__version__,
        description='Errors are {"error": "what is wrong; what to do"}, of status 400, 401, 413, 415 or 503.',
        docs_url=None,  # these pages load scripts from elsewhere; /openapi.json is there
        redoc_url=None,
        lifespan=lambda _: service.running(),
        exception_handlers=dict.fromkeys(errors, _told),
    )
    app.state.service = service
    app.include_router(router)
    app.mount("/", StaticFiles(directory=Path(__file__).with_name("page"), html=True))
    return metrics.watched(app)


Given = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]


async def _asked(request: Request, given: Given) -> Service:
    """What is asked by a client who may ask."""
    service: Service = request.app.state.service
    digest = hashlib.sha256(given.credentials.encode() if given else b"").digest()
    # Compared with all keys, in the same time whichever it is.
    if service.keys and not sum(secrets.compare_digest(digest, key) for key in service.keys):
        told = "a key is needed: send the header Authorization: Bearer KEY"
        raise HTTPException(401, told, {"WWW-Authenticate": "Bearer"})
    return service


Asked = Annotated[Service, Depends(_asked)]


async def _recognised(request: Request, service: Asked) -> Tensor:
    """Features of the images of a request. How many requests are at work is bounded before a body is read."""
    if service.slots.locked():
        raise HTTPException(503, "too many requests are at work; try again", {"Retry-After": "1"})
    async with service.slots:
        with metrics.AT_WORK.track_inprogress():
            features_ND = await service(await read_images(request, service.limits))
    if not features_ND.isfinite().all():
        raise HTTPException(500, "the model gives NaN; was the loss of its run finite?")
    return features_ND


Features = Annotated[Tensor, Depends(_recognised)]


async def _embedded(service: Asked, features_ND: Features) -> Tensor:
    if isinstance(service.model.head, GivenLogits):
        raise HTTPException(404, "this model gives classes alone, no embeddings; ask /classify")
    return features_ND


Embedded = Annotated[Tensor, Depends(_embedded)]
Top = Annotated[int, Query(ge=1, le=100, description="how many to name for each image, the best first")]


@router.post("/embed", openapi_extra=BODY)
async def embed(features_ND: Embedded) -> dict[str, list[list[float]]]:
    """``embeddings``: one an image, L2-normalised: their products are cosines."""
    return {"embeddings": F.normalize(features_ND).double().round(decimals=7).tolist()}


@router.post("/compare", openapi_extra=BODY)
async def compare(service: Asked, features_ND: Embedded) -> dict[str, float | bool | None]:
    """Two images: their ``cosine``, and whether it reaches the ``threshold``: ``same``, null where there is none."""
    if len(features_ND) != 2:
        raise HTTPException(400, f"{len(features_ND)} images; send two, each in a part named images")
    first, second = features_ND
    cosine, threshold = float(F.cosine_similarity(first, second, dim=0)), service.threshold
    same = None if threshold is None else cosine >= threshold
    return {"cosine": cosine, "threshold": threshold, "same": same}


@router.post("/classify", openapi_extra=BODY)
async def classify(service: Asked, features_ND: Features, top: Top = 5) -> Json:
    """As /search, among the classes that were trained; the ``measure`` of a linear head is ``probability``."""
    model = service.model
    names = model.classes or range(model.num_classes)
    labels_NK, scores_NK = await asyncio.to_thread(model.best, features_ND, top)
    rows = zip(labels_NK.tolist(), scores_NK.tolist(), strict=True)
    named = [[(str(names[label]), score) for label, score in zip(*row, strict=True)] for row in rows]
    return _findings(named, model.measure, service.threshold if model.measure == "cosine" else None)


@router.post("/search", openapi_extra=BODY)
async def search(service: Asked, features_ND: Features, top: Top = 5) -> Json:
    """For each image the ``nearest`` of the gallery; ``identity``: the first, null (unknown) below the threshold."""
    gallery = service.gallery
    if gallery is None:
        raise HTTPException(404, "there is no gallery here; start megaclass serve with --gallery")
    await asyncio.to_thread(gallery.refresh)  # others may have changed it
    found = await asyncio.to_thread(gallery.search, F.normalize(features_ND).numpy(), top)
    rows = [[(match.identity, match.cosine) for match in row] for row in found]
    return _findings(rows, "cosine", service.threshold)


def _findings(rows: list[list[tuple[str, float]]], measure: str, threshold: float | None) -> Json:
    images = []
    for row in rows:
        reached = row and (threshold is None or row[0][1] >= threshold)
        nearest = [{"name": name, "score": score} for name, score in row]
        images.append({"identity": row[0][0] if reached else None, "nearest": nearest})
    return {"measure": measure, "threshold": threshold, "images": images}


@router.get("/health")
async def health(request: Request, response: Response) -> Json:
    """Status 200 while images are taken, else 503; and what the page wants to know."""
    service: Service = request.app.state.service
    model, ready = service.model, not service.working.done()
    response.status_code = 200 if ready else 503
    told = {
        "ready": ready,
        "recipe": model.about.recipe,
        "measure": model.measure,
        "threshold": service.threshold,
    }
    gallery = service.gallery is not None
    return told | {"gallery": gallery, "key": bool(service.keys), "bytes": service.limits.size}


@router.get("/metrics", dependencies=[Depends(_asked)])
async def prometheus() -> Response:
    """For Prometheus."""
    return Response(generate_latest(metrics.REGISTRY), media_type=CONTENT_TYPE_LATEST)


async def _told(_: Request, error: Exception) -> Response:
    """An error in words. Those of a fault of ours stand in the log alone."""
    status, told, headers = 500, "the server failed; its log says why", None
    if isinstance(error, HTTPException):
        status, told, headers = error.status_code, error.detail, error.headers
    elif isinstance(error, RequestValidationError):
        first = error.errors()[0]
        status, told = 400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    elif isinstance(error, DamagedSampleError | ClientDisconnect):
        status, told = 400, str(error)
    return JSONResponse({"error": told}, status, headers)
