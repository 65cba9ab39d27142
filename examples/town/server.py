"""Offer a generated scene as tile servers do: WMS 1.3.0, XYZ, TMS, and its vector files; on this machine only.

python -m examples.town.server SCENE_DIR [--port 0] [--config config.toml]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, urlsplit
from xml.sax.saxutils import escape

import numpy as np
import rasterio
from PIL import Image
from rasterio.enums import Resampling
from rasterio.transform import from_bounds
from rasterio.vrt import WarpedVRT

from rsp.shared.tiles import MAX_ZOOM, Tile, bounds_mercator

CONFIG = Path(__file__).with_name("config.toml")
FORMATS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}
MAX_SIDE = 4096


class WmsError(Exception):
    """A request that a WMS answers with a ServiceException of this code."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class SceneServer:
    """Serves a scene on 127.0.0.1 while its context lasts; `url` says where."""

    def __init__(self, scene: Path, port: int = 0, config: Path = CONFIG) -> None:
        self.scene, self.config = Path(scene), config
        self._local = threading.local()
        self._open: list[rasterio.DatasetReader] = []
        server = self

        class Handler(SceneHandler):
            scene = server

        self._http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """The root, without a slash at its end."""
        return f"http://127.0.0.1:{self._http.server_port}"

    @property
    def wms(self) -> str:
        """The URL that `rsp download --type WMS` takes for tiles of 256 pixels."""
        return (
            f"{self.url}/wms?SERVICE=WMS&REQUEST=GetMap&VERSION=1.3.0&LAYERS=town&STYLES=&WIDTH=256&HEIGHT=256"
            "&CRS=EPSG:3857&BBOX={xmin},{ymin},{xmax},{ymax}&FORMAT=image/jpeg"
        )

    def serve_forever(self) -> None:
        """Serve in the caller's thread."""
        self._http.serve_forever()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        for raster in self._open:
            raster.close()

    def render(self, box: tuple[float, float, float, float], width: int, height: int) -> np.ndarray:
        """Return the picture of a box of EPSG:3857: shape (height, width, 4), transparent beyond the raster."""
        if not hasattr(self._local, "raster"):  # GDAL data sets belong to one thread
            self._local.raster = rasterio.open(self.scene / "town.tif")
            self._open.append(self._local.raster)
        with WarpedVRT(
            self._local.raster, crs="EPSG:3857", transform=from_bounds(*box, width, height), width=width,
            height=height, resampling=Resampling.bilinear, add_alpha=True,
        ) as view:  # fmt: skip
            return np.moveaxis(view.read(), 0, 2)


def encode(picture: np.ndarray, kind: str, transparent: bool) -> bytes:
    """Encode an RGBA picture; without transparency what is beyond the raster is white."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    if kind == "JPEG" or not transparent:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"compress_level": 1} if kind == "PNG" else {"quality": 92}))
    return buffer.getvalue()


class SceneHandler(BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    scene: SceneServer
    protocol_version = "HTTP/1.1"
    # Headers and body leave in one packet: two of them wait for each other (Nagle, delayed acknowledgement).
    wbufsize = -1

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        """Answer as GET does, without the body."""
        self.do_GET()

    def do_GET(self) -> None:
        """Find who answers a path."""
        parts = urlsplit(self.path)
        name, _, rest = parts.path.strip("/").partition("/")
        query = {key.upper(): value for key, value in parse_qsl(parts.query, keep_blank_values=True)}
        answers: dict[str, Callable[[], None]] = {
            "wms": lambda: self.wms(query),
            "xyz": lambda: self.tile(rest, flipped=False),
            "tms": lambda: self.tile(rest, flipped=True),
            "wfs": lambda: self.wfs(query),
            "town.osm.pbf": lambda: self.file("town.osm.pbf", "application/octet-stream"),
            "town.tif": lambda: self.file("town.tif", "image/tiff"),
            "buildings.geojson": lambda: self.file("buildings.geojson", "application/geo+json"),
            "config.toml": lambda: self.answer(200, "application/toml", self.scene.config.read_bytes()),
        }
        answer = answers.get(name)
        try:
            if answer is None:
                self.answer(404, "text/plain", f"nothing here; there are {', '.join(answers)}\n".encode())
            else:
                answer()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client was killed

    def answer(self, status: int, kind: str, body: bytes) -> None:
        """Send an answer."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Access-Control-Allow-Origin", "*")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def file(self, name: str, kind: str) -> None:
        """Send a file of the scene."""
        self.answer(200, kind, (self.scene.scene / name).read_bytes())

    def tile(self, path: str, *, flipped: bool) -> None:
        """Answer `z/x/y.format`; 404 where the tile lies beyond the raster."""
        place, _, extension = path.rpartition(".")
        numbers = place.split("/")
        if extension not in FORMATS or len(numbers) != 3 or not all(part.isdecimal() for part in numbers):
            self.answer(404, "text/plain", b"expected z/x/y with one of png, jpg, webp\n")
            return
        z, x, y = map(int, numbers)
        if z > MAX_ZOOM or max(x, y) >= 1 << z:
            self.answer(404, "text/plain", b"no such tile\n")
            return
        tile = Tile(x, (1 << z) - 1 - y if flipped else y, z)
        picture = self.scene.render(bounds_mercator(tile), 256, 256)
        if not picture[:, :, 3].any():
            self.answer(404, "text/plain", b"no such tile\n")
            return
        kind = FORMATS[extension]
        self.answer(200, f"image/{kind.lower()}", encode(picture, kind, transparent=kind != "JPEG"))

    def wfs(self, query: dict[str, str]) -> None:
        """Answer GetFeature in GeoJSON, whatever the box: the scene is small."""
        wanted = query.get("OUTPUTFORMAT", "")
        if query.get("REQUEST", "").lower() != "getfeature" or not wanted.startswith("application/json"):
            text = "expected GetFeature with outputFormat=application/json"
            self.exception(WmsError("OperationNotSupported", text))
        else:
            self.file("buildings.geojson", "application/json")

    def wms(self, query: dict[str, str]) -> None:
        """Answer GetMap, or say what is wrong as a WMS does: with status 200 and an XML."""
        try:
            box, width, height, kind, transparent = parse_getmap(query)
        except WmsError as error:
            self.exception(error)
            return
        picture = self.scene.render(box, width, height)
        self.answer(200, f"image/{kind.lower()}", encode(picture, kind, transparent))

    def exception(self, error: WmsError) -> None:
        """Send a ServiceException."""
        text = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            '<ServiceExceptionReport version="1.3.0" xmlns="http://www.opengis.net/ogc">\n'
            f'<ServiceException code="{error.code}">{escape(str(error))}</ServiceException>\n'
            "</ServiceExceptionReport>\n"
        )
        self.answer(200, "text/xml; charset=UTF-8", text.encode())


def parse_getmap(query: dict[str, str]) -> tuple[tuple[float, float, float, float], int, int, str, bool]:
    """Return box, width, height, format and transparency of a GetMap request; raise `WmsError` if it is wrong."""
    for key in ("SERVICE", "REQUEST", "VERSION", "LAYERS", "CRS", "BBOX", "WIDTH", "HEIGHT", "FORMAT"):
        if key not in query:
            raise WmsError("MissingParameterValue", f"the parameter {key} is missing")
    if query["SERVICE"].upper() != "WMS" or query["REQUEST"].lower() != "getmap":
        raise WmsError("OperationNotSupported", f"only GetMap of a WMS is offered, not {query['REQUEST']}")
    if query["VERSION"] != "1.3.0":
        raise WmsError("InvalidParameterValue", f"only version 1.3.0 is offered, not {query['VERSION']}")
    if query["LAYERS"] != "town":
        raise WmsError("LayerNotDefined", f"there is no layer {query['LAYERS']}; expected town")
    if query["CRS"].upper() not in ("EPSG:3857", "EPSG:900913"):
        raise WmsError("InvalidCRS", f"only EPSG:3857 is offered, not {query['CRS']}")
    main, _, kind = query["FORMAT"].partition("/")
    if main != "image" or kind not in FORMATS:
        raise WmsError("InvalidFormat", f"expected image/jpeg, image/png or image/webp, not {query['FORMAT']}")
    try:
        west, south, east, north = (float(value) for value in query["BBOX"].split(","))
        width, height = int(query["WIDTH"]), int(query["HEIGHT"])
    except ValueError:
        raise WmsError("InvalidParameterValue", "BBOX is four numbers, WIDTH and HEIGHT are whole ones") from None
    if not (west < east and south < north and 0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise WmsError("InvalidParameterValue", f"an empty BBOX, or a side beyond 1..{MAX_SIDE}")
    transparent = query.get("TRANSPARENT", "").upper() == "TRUE"
    return (west, south, east, north), width, height, FORMATS[kind], transparent


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--config", type=Path, default=CONFIG)
    args = parser.parse_args()
    server = SceneServer(args.scene, args.port, args.config)
    print(server.url, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()
