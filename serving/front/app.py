"""The application of the live front: what it answers at which path, and its OpenAPI document."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse, Response

from rsp import __version__
from rsp.serving.front import page
from rsp.serving.front.cache import Cache
from rsp.serving.front.documents import STATUS_ANSWERS, mend_openapi
from rsp.serving.front.documents import answers as answers_of
from rsp.serving.front.errors import GONE, RefusedError, refusal
from rsp.serving.front.models import Models
from rsp.serving.front.outer import PAGE_POLICY, Outer, note
from rsp.serving.front.routes import add_descriptions, add_predictions, add_tiles
from rsp.serving.front.tiles import Tiles
from rsp.serving.front.turns import ClientGoneError
from rsp.serving.sources import Source
from rsp.serving.tokens import Tokens

if TYPE_CHECKING:
    from rsp.serving.metrics import Metrics

# Bytes of tiles that are kept in memory, and requests that may wait, for each at the servers.
CACHE_BYTES, LINE = 256 << 20, 16


def create_app(
    sources: Sequence[Source],
    models: Models,
    *,
    width: int = 4,
    line: int | None = None,
    cache_bytes: int = CACHE_BYTES,
    cache_folder: FilePath | None = None,
    cache_folder_bytes: int = 1 << 30,
    tokens: Tokens | None = None,
    origins: Sequence[str] = (),
    base_url: str = "",
    metrics: Metrics | None = None,
) -> Outer:
    """Return the application of the live front. It closes sources and models when it ends.

    Args:
        sources: The imagery that may be asked for.
        models: The servers behind.
        width: Requests under way at the servers at once.
        line: Requests that may wait for that; more are answered 429. 16 for each at the servers where None.
        cache_bytes: Bytes of tiles that are kept in memory.
        cache_folder: Where tiles are kept beyond this process; nowhere where None.
        cache_folder_bytes: Bytes that they may take there.
        tokens: Who may ask; everybody where None.
        origins: Other origins whose pages may read answers; `*` for all.
        base_url: What TileJSON has before its paths; what the request was sent to where empty.
        metrics: Where to count.

    Raises:
        StorageError: the folder cannot be written.
    """
    cache = Cache(cache_bytes, cache_folder, cache_folder_bytes)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        tiles = app.state.tiles = Tiles(
            sources, models, cache, width=width, line=LINE * width if line is None else line, metrics=metrics
        )
        await models.refresh()  # so that the first to come finds models
        watching = asyncio.ensure_future(models.watch())
        try:
            yield
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            tiles.close()
            models.close()

    app = FastAPI(
        title="Live tiles", version=__version__, description=page.OPENAPI, lifespan=life, docs_url=None,
        redoc_url=None, swagger_ui_oauth2_redirect_url=None,
    )  # fmt: skip
    app.state.base_url, app.state.models = base_url.rstrip("/"), models
    _add_errors(app)
    _add_routes(app)
    mend_openapi(app)
    return Outer(app, tokens=tokens, origins=origins, metrics=metrics)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        if error.status in (204, 304):
            return Response(status_code=error.status, headers={**error.headers, "Cache-Control": "no-cache"})
        note(request.scope, detail=error.detail)
        return refusal(error.status, error.detail, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        said = "; ".join(f"{found['loc'][-1]}: {found['msg']}" for found in error.errors())[:500]
        note(request.scope, detail=said)
        return refusal(400, said)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        detail = {
            404: "nothing is at this path; /openapi.json says what there is",
            405: f"{request.method} makes no sense here",
        }.get(error.status_code, str(error.detail))
        note(request.scope, detail=detail)
        return refusal(error.status_code, detail, error.headers)

    @app.exception_handler(ClientGoneError)
    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=GONE)  # nobody reads it; the metrics count it


def _add_routes(app: FastAPI) -> None:
    _add_information(app)
    add_descriptions(app)
    add_predictions(app)
    add_tiles(app)


def _add_information(app: FastAPI) -> None:
    models: Models = app.state.models

    @app.get("/", response_class=HTMLResponse, summary="The map", responses=answers_of())
    async def index() -> Response:
        return HTMLResponse(
            page.html(), headers={"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}
        )

    @app.get(
        "/static/{file}",
        summary="Scripts and styles of the map",
        responses=answers_of(404),
        include_in_schema=False,
    )
    async def static(file: str, request: Request) -> Response:
        return page.static(file, request.headers.get("if-none-match", ""))

    @app.get("/livez", summary="Whether the front runs", responses=answers_of())
    async def livez() -> dict[str, bool]:
        return {"alive": True}

    @app.get("/healthz", summary="Whether the servers behind answer", responses=answers_of(503))
    async def healthz() -> dict[str, bool]:
        if not await models.ready():
            raise RefusedError(503, "the servers behind are not ready")
        return {"ready": True}

    @app.get("/status", response_class=Response, summary="What the servers behind serve", responses=STATUS_ANSWERS)
    async def status() -> Response:
        await models.refresh(older=0.5)
        return JSONResponse(models.look.content, models.look.code, {"Cache-Control": "no-store"})

    @app.get("/models", summary="The models", responses=answers_of(503))
    async def list_models() -> dict[str, Any]:
        return {"models": [await _about_model(models, name) for name in models.names()]}

    @app.get("/sources", summary="The sources", responses=answers_of())
    async def list_sources() -> dict[str, Any]:
        return {"sources": [_about_source(source) for source in app.state.tiles.sources.values()]}


def _about_source(source: Source) -> dict[str, Any]:
    return {
        "name": source.name,
        "kind": source.kind,
        "attribution": source.attribution,
        "minzoom": source.extent.low,
        "maxzoom": source.extent.high,
        "bounds": [round(value, 7) for value in source.extent.bounds],
        "channels": [name for name in source.layers if name],
        "tile_size": source.first.tile_size,
    }


async def _about_model(models: Models, name: str) -> dict[str, Any]:
    about = models.about(name)
    found: dict[str, Any] = {
        "name": name,
        "version": models.version(name),
        "state": about.get("state"),
        "wanted": about.get("wanted"),
        "reason": about.get("reason"),
    }
    with suppress(RefusedError):
        model = await models.get(name)
        card = model.card
        found |= {
            "version": model.version,
            "uuid": card.uuid,
            "tile_size": card.tile_size,
            "overlap": card.overlap,
            "zoom": card.zoom,
            "classes": page.legend(card.classes),
            "channels": [
                {"name": channel.name, "bands": list(channel.bands), "value_type": channel.value_type}
                for channel in card.channels
            ],
        }
    return found
