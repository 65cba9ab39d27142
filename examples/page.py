"""The page at the end of the demo: what went in, what came out, how good it is, and how to go on.

One HTML file without a request to anywhere: pictures are data URIs, the map is SVG. It opens from the disk.
"""

from __future__ import annotations

import io
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import shapely
from PIL import Image

from rsp.shared.atomic import atomic_text
from rsp.shared.features import read_features, to_mercator
from rsp.shared.images import Array, Mask, decode, decode_mask
from rsp.shared.metrics import Counts, confusion, foreground_iou, precision_per_class, recall_per_class
from rsp.shared.pictures import shrink, to_rgb
from rsp.shared.tiles import Tile, bounds_mercator
from rsp.shared.tileset import TileReader, open_reader

TEMPLATE = Path(__file__).parent / "page.html"

# Limits on the size of the page: tiles shown and their side, side of the map, tiles and points drawn on it.
MAX_TILES = 48
TILE_PIXELS = 256
MAP_PIXELS = 1100
MAP_TILES = 4000
MAP_POINTS = 60_000

# Agreement of label and mask, for eyes of every kind: both, label only, mask only.
AGREEMENT = {"both": (45, 212, 191), "missed": (251, 191, 36), "extra": (255, 45, 149)}


@dataclass(frozen=True)
class Made:
    """What the demo made, as the page shows it.

    Attributes:
        title: What the pipeline was run on.
        images: Tile set of the whole area.
        labels: Labels of the validation tiles.
        masks: Masks of the validation tiles.
        features: GeoJSON of what was found in the area.
        metrics: What `compare` measured on the validation tiles.
        training: What training measured on the same tiles, of whose neighbours it knows only validation tiles.
        overlap: How many pixels of its neighbours each tile was predicted with.
        epochs: How many epochs it trained.
        served: How many masks over HTTP are the same as the pipeline's, and how many were asked for.
        seconds: How long each step took, in order.
        total: How long all took.
        files: What there is to look at, by what it is.
        model: The exported model.
        review: The page to review what map and prediction disagree on; None for none.
        suspects: How many objects it shows.
    """

    title: str
    images: Path
    labels: Path
    masks: Path
    features: Path
    metrics: Mapping[str, float]
    training: Mapping[str, Any]
    overlap: int
    epochs: int
    served: tuple[int, int]
    seconds: Mapping[str, float]
    total: float
    files: Mapping[str, Path]
    model: Path
    review: Path | None = None
    suspects: int = 0


def write_page(out: Path, made: Made) -> Path:
    """Write the page beside the files that it links to.

    Args:
        out: The folder of the demo's results.
        made: What to show.

    Returns:
        Where the page is.
    """
    with open_reader(made.images) as images, open_reader(made.labels) as labels, open_reader(made.masks) as masks:
        tiles = masks.tiles()
        colors = _palette(masks.read(tiles[0]))
        titles = [name.removeprefix("iou_") for name in made.metrics if name.startswith("iou_")]
        scored = _score(tiles, labels, masks, max(len(titles), 2))
        gallery = _gallery(_spread(scored), images, labels, masks, colors)
        picture, count = _map(images, tiles, made.features, colors)
    matrix = np.sum(list(scored.values()), axis=0)
    values = {
        "title": escape(made.title),
        "lead": _lead(made, titles),
        "numbers": _numbers(made, titles, matrix, count),
        "note": _note(made),
        "review": _review(out, made),
        "map": picture,
        "gallery": gallery,
        "shown": f"{min(len(tiles), MAX_TILES)} of {len(tiles)}"
        if len(tiles) > MAX_TILES
        else f"all {len(tiles)}",
        "times": _times(made),
        "files": _files(out, made.files),
        "next": _next(made),
        "legend": _legend(),
        "agreement_css": "".join(f"--{name}: {_hex(color)};" for name, color in AGREEMENT.items()),
    }
    page = out / "index.html"
    with atomic_text(page) as file:
        file.write(re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], TEMPLATE.read_text("utf-8")))
    return page


def _score(tiles: Sequence[Tile], labels: TileReader, masks: TileReader, classes: int) -> dict[Tile, Counts]:
    """Return the confusion matrix of each tile."""
    return {
        tile: confusion(decode_mask(labels.read(tile)), decode_mask(masks.read(tile)), classes) for tile in tiles
    }


def _spread(scored: Mapping[Tile, Counts]) -> dict[Tile, float]:
    """Return the IoU of the tiles to show, in map order; of many tiles a sample from the worst to the best."""
    iou = {tile: foreground_iou(counts) for tile, counts in scored.items()}
    ranked = sorted(iou, key=lambda tile: (np.isnan(iou[tile]), iou[tile], tile))
    if len(ranked) > MAX_TILES:
        ranked = [ranked[round(step)] for step in np.linspace(0, len(ranked) - 1, MAX_TILES)]
    return {tile: iou[tile] for tile in sorted(ranked, key=lambda tile: (tile.y, tile.x))}


def _gallery(
    shown: Mapping[Tile, float], images: TileReader, labels: TileReader, masks: TileReader, colors: Array
) -> str:
    figures = []
    examples = _examples(shown, labels)
    for place, (tile, iou) in enumerate(shown.items()):
        label, mask = decode_mask(labels.read(tile)), decode_mask(masks.read(tile))
        photo = _webp(shrink(to_rgb(decode(images.read(tile))), TILE_PIXELS))
        layers = {
            "both": _png(_agreement(label, mask), np.array([(0, 0, 0), *AGREEMENT.values()], np.uint8)),
            "label": _png(label, colors),
            "mask": _png(mask, colors),
        }
        name = f"{tile.z}/{tile.x}/{tile.y}"
        kind = "tile example" if tile in examples else "tile"
        value = -1 if np.isnan(iou) else round(float(iou), 4)
        score = "empty" if np.isnan(iou) else f"{iou:.2f}"
        figures.append(
            f'<figure class="{kind}" data-iou="{value}" data-place="{place}">'
            f'<button type="button" aria-label="Tile {name}, IoU {score}: enlarge">'
            f'<img class="photo" alt="Aerial image of tile {name}" src="{photo}">'
            + "".join(f'<img class="layer {key}" alt="" src="{uri}">' for key, uri in layers.items())
            + f"</button><figcaption><span>{tile.x},{tile.y}</span><b>{score}</b></figcaption></figure>"
        )
    return "\n".join(figures)


def _examples(shown: Mapping[Tile, float], labels: TileReader) -> set[Tile]:
    """Return four tiles with a good deal to see, of different IoU: those that the page shows first."""
    share = {tile: float(np.mean(decode_mask(labels.read(tile)) > 0)) for tile in shown}
    full = sorted(shown, key=lambda tile: -share[tile])[: max(4, len(shown) // 2)]
    ranked = sorted(full, key=lambda tile: (-np.nan_to_num(shown[tile]), tile))
    return {ranked[round(step)] for step in np.linspace(0, len(ranked) - 1, 4)}


def _agreement(label: Mask, mask: Mask) -> Mask:
    """Return 1 where both have the same class, 2 where the mask lacks that of the label, 3 where it adds one."""
    found = np.zeros(label.shape, np.uint8)
    found[(label == mask) & (label > 0)] = 1
    found[(label != mask) & (label > 0)] = 2
    found[(label == 0) & (mask > 0)] = 3
    return found


def _palette(mask: bytes) -> Array:
    """Return the colours of the classes of a mask, shape (classes, 3)."""
    with Image.open(io.BytesIO(mask)) as image:
        return np.array(image.getpalette(), np.uint8).reshape(-1, 3)


def _png(values: Mask, colors: Array) -> str:
    """Return a picture of classes as a data URI, the background transparent."""
    picture = Image.fromarray(values)
    picture.thumbnail((TILE_PIXELS, TILE_PIXELS), Image.Resampling.NEAREST)
    picture.putpalette(colors.tobytes())
    data = io.BytesIO()
    picture.save(data, "PNG", transparency=b"\0" + b"\xb4" * (len(colors) - 1), optimize=True)
    return f"data:image/png;base64,{b64encode(data.getvalue()).decode()}"


def _webp(picture: Array, quality: int = 80) -> str:
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "WEBP", quality=quality)
    return f"data:image/webp;base64,{b64encode(data.getvalue()).decode()}"


def _map(images: TileReader, validation: Sequence[Tile], features: Path, colors: Array) -> tuple[str, int]:
    """Return an SVG of the area with the features found in it, and how many these are."""
    tiles = images.tiles()
    columns, rows = [tile.x for tile in tiles], [tile.y for tile in tiles]
    left, top, zoom = min(columns), min(rows), tiles[0].z
    across, down = max(columns) - left + 1, max(rows) - top + 1
    pixels = max(1, MAP_PIXELS // max(across, down))
    width, height = across * pixels, down * pixels
    parts = []
    if len(tiles) <= MAP_TILES:
        mosaic = np.zeros((height, width, 3), np.uint8)
        for tile in tiles:
            picture = Image.fromarray(to_rgb(decode(images.read(tile)))).resize(
                (pixels, pixels), Image.Resampling.BOX
            )
            x, y = (tile.x - left) * pixels, (tile.y - top) * pixels
            mosaic[y : y + pixels, x : x + pixels] = np.asarray(picture)
        parts.append(f'<image class="photo" href="{_webp(mosaic, 75)}" width="{width}" height="{height}"/>')
    held_out = shapely.union_all(
        [
            shapely.box(x, y, x + pixels, y + pixels)
            for x, y in (((tile.x - left) * pixels, (tile.y - top) * pixels) for tile in validation)
        ]
    )
    parts.append(f'<path class="validation" d="{_path(held_out)}"/>')
    west, _, _, north = bounds_mercator(Tile(left, top, zoom))
    _, south, east, _ = bounds_mercator(Tile(left + across - 1, top + down - 1, zoom))
    scale = np.array([width / (east - west), -height / (north - south)])
    found = [feature.geometry for feature in read_features(features)]
    drawn, points = [], 0
    placed = shapely.transform(to_mercator(np.array(found, object), 4326), lambda at: (at - [west, north]) * scale)
    for geometry in sorted(shapely.simplify(placed, 0.3), key=lambda shape: -shape.area):
        points += shapely.get_num_coordinates(geometry)
        if points > MAP_POINTS:
            break
        drawn.append(_path(geometry))
    color = _hex(tuple(colors[1])) if len(colors) == 2 else "#ff2d95"
    parts.append(f'<path class="features" style="--class: {color}" d="{"".join(drawn)}"/>')
    return (
        f'<svg id="map" viewBox="0 0 {width} {height}" style="aspect-ratio: {width} / {height}" '
        f'data-size="{width} {height}" tabindex="0" role="img" '
        f'aria-label="Map of the area with {len(found)} features found">{"".join(parts)}</svg>',
        len(found),
    )


def _path(geometry: Any) -> str:
    """Return the rings of polygons as the path of an SVG."""
    rings = []
    for polygon in shapely.get_parts(geometry):
        for ring in (polygon.exterior, *polygon.interiors):
            at = shapely.get_coordinates(ring)[:-1]
            rings.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in at) + "Z")
    return "".join(rings)


def _lead(made: Made, titles: Sequence[str]) -> str:
    what = titles[1] if len(titles) == 2 else "classes"
    return (
        f"The pipeline <code>hello_world</code> learnt to find {escape(_plural(what))} on {escape(made.title)}, "
        f"in {made.epochs} epochs and {_duration(made.total)} on this machine."
    )


def _plural(title: str) -> str:
    return title if title.endswith("s") else f"{title}s"


def _numbers(made: Made, titles: Sequence[str], matrix: Counts, features: int) -> str:
    """Return the numbers, each with what it means."""
    what = titles[1] if len(titles) == 2 else "foreground"
    iou = made.metrics.get("iou", float("nan"))
    recall = float(np.nanmean(recall_per_class(matrix)[1:]))
    precision = float(np.nanmean(precision_per_class(matrix)[1:]))
    cards = [
        (
            f"IoU, {what}",
            f"{iou:.3f}",
            f"Of all pixels that are {what} in the label or in the mask, {iou:.1%} are so in both.",
        ),
        ("Recall", f"{recall:.1%}", f"Part of the labelled {what} pixels that the mask has too."),
        ("Precision", f"{precision:.1%}", f"Part of the mask's {what} pixels that the label has too."),
        (
            "MCC",
            f"{made.metrics.get('mcc', float('nan')):.3f}",
            "Correlation of label and mask: 0 is chance, 1 perfect.",
        ),
        ("Features", f"{features:,}", "Polygons vectorized from the masks of the whole area."),
    ]
    same, asked = made.served
    cards.append(
        ("TorchServe", f"{same} of {asked}", "Masks over HTTP that equal the pipeline's, byte for byte.")
        if asked
        else ("TorchServe", "not run", "Without Java, or below the threshold, no model is served.")
    )
    return "".join(
        f"<div><dt>{escape(name)}</dt><dd><strong>{value}</strong><span>{escape(text)}</span></dd></div>"
        for name, value, text in cards
    )


def _note(made: Made) -> str:
    """Return why training's own number differs."""
    iou = made.training.get("iou")
    if not isinstance(iou, int | float):
        return ""
    return (
        f"Measured by <code>rsp compare</code> on the validation tiles, which training never saw. Training itself "
        f"reports an IoU of {iou:.3f} for the same model and tiles: a tile is seen with {made.overlap} pixels of "
        "its neighbours, and of these training knows only those that are validation tiles, too."
    )


def _review(out: Path, made: Made) -> str:
    """Return the link to the page to review, which is what most people do next."""
    if made.review is None:
        return ""
    where = quote(made.review.resolve().relative_to(out.resolve()).as_posix())
    return (
        f'<p class="review"><a class="go" href="{where}">Review the {made.suspects} most suspicious objects</a> '
        "<span>Where map and prediction disagree: accept, doubt or reject them by keys.</span></p>"
    )


def _times(made: Made) -> str:
    longest = max(made.seconds.values(), default=1) or 1
    return "".join(
        f'<tr><th scope="row">{escape(name)}</th><td><i style="width:{100 * value / longest:.1f}%"></i></td>'
        f"<td>{value:.1f} s</td></tr>"
        for name, value in made.seconds.items()
    )


def _files(out: Path, files: Mapping[str, Path]) -> str:
    rows = []
    for what, path in files.items():
        where = Path(path).resolve().relative_to(out.resolve()).as_posix()
        shown = where if len(where) < 40 else Path(where).name
        rows.append(
            f'<li><a href="{quote(where)}">{escape(what[0].upper() + what[1:])}</a>'
            f"<span>{escape(shown)}, {_size(path.stat().st_size)}</span></li>"
        )
    return "".join(rows)


def _next(made: Made) -> str:
    commands = [
        ("Put <code>rsp</code> on the path of this shell", "source .venv/bin/activate"),
        ("Serve the model", f"rsp serve --model {made.model} --name town"),
        (
            "Ask it for the mask of a tile, in another shell",
            "curl -T tile.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8080/predictions/town -o mask.png",
        ),
        ("Run all this on your own tiles and labels", "make demo SCENE=path/to/folder"),
    ]
    return "".join(
        f"<li><p>{text}</p><pre><code>{escape(command)}</code></pre></li>" for text, command in commands
    )


def _legend() -> str:
    texts = {"both": "label and mask agree", "missed": "only in the label", "extra": "only in the mask"}
    return "".join(f'<span><i style="background:var(--{key})"></i>{text}</span>' for key, text in texts.items())


def _hex(color: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*map(int, color))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _size(count: float) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{max(1, round(count / 1e3))} kB"
