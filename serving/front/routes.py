"""What the front answers for images that are sent, and for tiles of its sources."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request
from starlette.responses import Response

from rsp.serving.front import page
from rsp.serving.front.cache import Entry
from rsp.serving.front.documents import (
    BINARY,
    IMAGE_BODY,
    OBJECT,
    Empty,
    Form,
    Known,
    ModelName,
    Name,
    Number,
    OverlapQuery,
    PictureForm,
    VersionQuery,
    Zoom,
)
from rsp.serving.front.documents import answers as answers_of
from rsp.serving.front.errors import NoSuchTileError, RefusedError
from rsp.serving.front.models import VERSION
from rsp.serving.front.outer import note
from rsp.serving.front.tiles import Asked, passed
from rsp.serving.front.turns import unless_gone
from rsp.serving.proxy import max_request_size
from rsp.serving.sources import Source
from rsp.shared.tiles import Tile

# Bytes of a body that is refused for its size and read all the same: most clients look for an answer at its end.
DRAINED = 64 << 20


def add_predictions(app: FastAPI) -> None:
    """Pass images on to the servers behind, as TorchServe takes them."""
    answers = answers_of(400, 404, 406, 408, 413, 415, 429, 502, 503, 504, png=BINARY, webp=BINARY, geojson=OBJECT)
    answers[200]["content"]["application/octet-stream"] = BINARY

    async def predict(request: Request, model: str, version: str | None) -> Response:
        note(request.scope, model=model, version=version)
        image = await _body(request)
        names = ("Accept", "X-Overlap", "X-Tile", "Content-Type")
        headers = {name: request.headers[name] for name in names if name in request.headers}
        headers["X-Request-Id"] = request.state.request_id
        answer = await unless_gone(request, app.state.tiles.predict(model, version, image, headers))
        about = passed(answer)
        note(request.scope, version=about.get("X-Model-Version"))
        kind = answer.headers.get("Content-Type", "application/octet-stream")
        return Response(answer.content, 200, {**about, "Content-Type": kind, "Cache-Control": "no-store"})

    # PUT is what `curl -T` sends.
    @app.put("/predictions/{model}", include_in_schema=False)
    @app.post(
        "/predictions/{model}", response_class=Response, summary="The mask of an image", responses=answers,
        openapi_extra=IMAGE_BODY,
    )  # fmt: skip
    async def predict_model(request: Request, model: ModelName) -> Response:
        return await predict(request, model, None)

    @app.put("/predictions/{model}/{version}", include_in_schema=False)
    @app.post(
        "/predictions/{model}/{version}", response_class=Response,
        summary="The mask of an image, by one version of a model", responses=answers, openapi_extra=IMAGE_BODY,
    )  # fmt: skip
    async def predict_version(
        request: Request, model: ModelName, version: Annotated[str, Path(pattern=f"^{VERSION}$")]
    ) -> Response:
        return await predict(request, model, version)


def add_descriptions(app: FastAPI) -> None:
    """Describe models where predictions are asked for, as the servers behind do."""
    answers = answers_of(400, 404, 502, 503, 504)

    async def describe(request: Request, model: str, version: str | None) -> Response:
        found = await app.state.models.ask(model, version)
        note(request.scope, model=model, version=found.version)
        headers = {"X-Model-Version": found.version, "Cache-Control": "no-store"}
        return Response(found.card.to_json(), 200, headers, "application/json")

    @app.get("/predictions/{model}", summary="The card of a model", responses=answers)
    async def describe_model(request: Request, model: ModelName) -> Response:
        return await describe(request, model, None)

    @app.get("/predictions/{model}/{version}", summary="The card of one version of a model", responses=answers)
    async def describe_version(
        request: Request, model: ModelName, version: Annotated[str, Path(pattern=f"^{VERSION}$")]
    ) -> Response:
        return await describe(request, model, version)


async def _body(request: Request) -> bytes:
    """Return the body of a request, up to what the servers behind take."""
    most = max_request_size()
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RefusedError(415, "send the image as it is: Content-Encoding is not taken")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most and "expect" in request.headers:
        raise RefusedError(413, f"a request may have {most} bytes")
    body, size = bytearray(), 0
    async for part in request.stream():
        size += len(part)
        if size <= most:
            body += part
        elif size > DRAINED:
            break
    if size > most:
        raise RefusedError(413, f"a request may have {most} bytes", {"Connection": "close"})
    if not size:
        raise RefusedError(400, "the body is empty: send an image")
    return bytes(body)


def _tile(z: int, x: int, y: int) -> Tile:
    if max(x, y) >= 1 << z:
        raise NoSuchTileError(
            404, f"there is no tile {z}/{x}/{y}: zoom {z} has columns and rows 0 to {(1 << z) - 1}"
        )
    return Tile(x, y, z)


def add_tiles(app: FastAPI) -> None:
    """Answer for tiles of the sources."""
    errors = (204, 304, 400, 404, 429, 502, 503, 504)

    @app.get("/{source}.json", summary="TileJSON of a source", responses=answers_of(400, 404))
    async def source_json(request: Request, source: Name) -> dict[str, Any]:
        return _tilejson(request, app.state.tiles.source(source), f"{source}/{{z}}/{{x}}/{{y}}.webp")

    @app.get(
        "/{source}/{model}.json",
        summary="TileJSON of a model on a source",
        responses=answers_of(400, 404, 409, 502, 503),
    )
    async def model_json(request: Request, source: Name, model: ModelName) -> dict[str, Any]:
        place = app.state.tiles.source(source)
        found = await app.state.models.get(model)
        return _tilejson(request, place, f"{source}/{model}/{{z}}/{{x}}/{{y}}.png?transparent=true") | {
            "name": f"{model} on {source}",
            "model": {"name": model, "version": found.version, "classes": page.legend(found.card.classes)},
        }

    @app.get(
        "/{source}/{z}/{x}/{y}.{form}", response_class=Response, summary="A tile of a source, as people see it",
        responses=answers_of(*errors, 409, png=BINARY, webp=BINARY, jpg=BINARY),
    )  # fmt: skip
    async def picture(
        request: Request, source: Name, z: Zoom, x: Number, y: Number, form: PictureForm, empty: Empty = False,
        if_none_match: Known = "",
    ) -> Response:  # fmt: skip
        note(request.scope, source=source)
        with _emptying(empty):
            tile = _tile(z, x, y)
            work = app.state.tiles.picture(source, tile, form, if_none_match)
            return _response(await unless_gone(request, work))

    @app.get(
        "/{source}/{model}/{z}/{x}/{y}.{form}", response_class=Response, summary="A mask or its features, live",
        responses=answers_of(*errors, 406, 409, png=BINARY, webp=BINARY, geojson=OBJECT, tif=BINARY),
        description=(
            "`png`: the mask, byte for byte as `rsp predict` writes it (with `transparent`, the background shows "
            "what lies below). `webp`: lossless, grey = index of the class. `geojson`: the outlines in WGS 84. "
            "`tif`: the pixels that the model sees, border included."
        ),
    )  # fmt: skip
    async def mask(
        request: Request, source: Name, model: ModelName, z: Zoom, x: Number, y: Number, form: Form,
        version: VersionQuery = None, overlap: OverlapQuery = None,
        transparent: Annotated[bool, Query(description="Let the background of a PNG be transparent.")] = False,
        empty: Empty = False, if_none_match: Known = "",
    ) -> Response:  # fmt: skip
        note(request.scope, source=source, model=model, version=version)
        if transparent and form != "png":
            raise RefusedError(400, "transparent: only a png can be")
        with _emptying(empty):
            asked = Asked(_tile(z, x, y), form, overlap, version, request.state.request_id, if_none_match)
            entry = await unless_gone(request, app.state.tiles.mask(source, model, asked))
        answered = entry.headers["X-Model-Version"]
        note(request.scope, version=answered)
        if transparent:
            card = await app.state.models.card(model, answered)
            entry = Entry(page.let_through(entry.body, card.classes), entry.headers)
        return _response(entry)


@contextmanager
def _emptying(empty: bool) -> Iterator[None]:
    """Answer 204 where there is no such tile, if that was asked for."""
    try:
        yield
    except NoSuchTileError as error:
        raise (RefusedError(204, error.detail) if empty else error) from None


def _response(entry: Entry) -> Response:
    # Whether it is still so costs a glance, and a model may change at any moment.
    return Response(entry.body, 200, {**entry.headers, "Cache-Control": "no-cache"})


def _tilejson(request: Request, source: Source, path: str) -> dict[str, Any]:
    base = request.app.state.base_url or str(request.base_url).rstrip("/")
    west, south, east, north = (round(value, 7) for value in source.extent.bounds)
    return {
        "tilejson": "3.0.0",
        "name": source.name,
        "attribution": source.attribution,
        "scheme": "xyz",
        "tiles": [f"{base}/{path}"],
        "minzoom": source.extent.low,
        "maxzoom": source.extent.high,
        "bounds": [west, south, east, north],
        "center": [round((west + east) / 2, 7), round((south + north) / 2, 7), source.extent.high],
    }
