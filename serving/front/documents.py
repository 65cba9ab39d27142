"""What the OpenAPI document of the front says: parameters, answers, and the one form of errors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import FastAPI, Header, Path, Query

from rsp.serving.front.models import NAME, VERSION
from rsp.serving.front.tiles import MEDIA
from rsp.shared.tiles import MAX_ZOOM

Form = Literal["png", "webp", "geojson", "tif"]
PictureForm = Literal["png", "webp", "jpg"]


# What every error looks like. Written out, since FastAPI would give it the media type of the route.
PROBLEM = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}}
_PROBLEM = {
    "type": "object",
    "required": ["error", "detail"],
    "additionalProperties": False,
    "properties": {
        "error": {"type": "string", "description": "The status in words."},
        "detail": {"type": "string", "description": "What was wrong, for people."},
    },
}


Name = Annotated[str, Path(pattern=f"^{NAME}$", description="Name of a source; `/sources` lists them.")]
ModelName = Annotated[str, Path(pattern=f"^{NAME}$", description="Name of a model; `/models` lists them.")]
Zoom = Annotated[int, Path(ge=0, le=MAX_ZOOM, description="Zoom of the tile.")]
Number = Annotated[
    int, Path(ge=0, lt=1 << MAX_ZOOM, description="Column (x, from the west) or row (y, from the north).")
]
Known = Annotated[str, Header(alias="If-None-Match", max_length=4000, description="ETags that the client has.")]
Empty = Annotated[bool, Query(description="Answer 204, not 404, where the source has no such tile.")]
VersionQuery = Annotated[
    str | None,
    Query(pattern=f"^{VERSION}$", description="A version of the model; the one that answers where left out."),
]
OverlapQuery = Annotated[
    int | None,
    Query(ge=0, le=1024, description="Pixels of the neighbouring tiles on each side; the model's where left out."),
]

REASONS = {
    204: "The source has no such tile, and `empty` was asked for.",
    304: "The client has it already (If-None-Match).",
    400: "A parameter is not what it should be; `detail` says which.",
    401: "A token is needed: `Authorization: Bearer`, or the password of HTTP Basic.",
    404: "There is no such source, model, version, or tile.",
    406: "The model cannot answer in this form.",
    408: "The body did not come in time.",
    409: "The source holds what this model does not take; `detail` says what.",
    413: "The body is too large.",
    415: "The body is encoded.",
    429: "Too many requests wait already; `Retry-After` says when to come back.",
    500: "A fault of the server.",
    502: "The servers behind answered what makes no sense.",
    503: "No worker answers now, or the source does not; `Retry-After` says when to come back.",
    504: "The servers behind gave no answer in time.",
}


def answers(*statuses: int, **media: Any) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of the answers of a route."""
    found: dict[int | str, dict[str, Any]] = {
        status: {"description": REASONS[status]} | ({} if status in (204, 304) else PROBLEM)
        for status in sorted({*statuses, 401, 500})
    }
    if media:
        found[200] = {
            "description": "The answer.",
            "content": {MEDIA[name]: about for name, about in media.items()},
        }
    return found


BINARY = {"schema": {"type": "string", "format": "binary"}}
OBJECT: dict[str, Any] = {"schema": {"type": "object"}}


IMAGES = ("image/png", "image/jpeg", "image/webp", "image/tiff", "application/octet-stream")

# The body of a request for a prediction.
IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "description": "An image, with its border where X-Overlap says so.",
        "content": dict.fromkeys(IMAGES, BINARY),
    }
}

STATUS_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The state of each model.", "content": {"application/json": OBJECT}},
    404: {"description": "The servers behind have no /status.", "content": {"application/json": OBJECT}},
    503: {"description": "The servers behind are not ready.", "content": {"application/json": OBJECT}},
    500: {"description": REASONS[500], **PROBLEM},
}


def mend_openapi(app: FastAPI) -> None:
    """Leave out of the document what is never answered: FastAPI's own form of errors, status 422."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = make()
            for path in document["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            document["components"] = {"schemas": {"Problem": _PROBLEM}}
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]
