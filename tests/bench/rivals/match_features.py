"""Match features with shapely, one after the other: `match_features.py MAPPED PREDICTED OUT`.

Each predicted feature gets the mapped one of the highest IoU, how far that lies away, and what is left of it
without a metre of its outline, as one would write it in a notebook.
"""

import json
import math
import sys
from pathlib import Path

import shapely
from shapely.geometry import mapping, shape

RADIUS = 6378137.0


def read(path: Path) -> list:
    """Return the features in metres of web mercator."""

    def project(points):
        points[:, 0] = RADIUS * points[:, 0] * math.pi / 180
        points[:, 1] = [RADIUS * math.log(math.tan(math.pi / 4 + math.radians(y) / 2)) for y in points[:, 1]]
        return points

    features = json.loads(path.read_text())["features"]
    return [shapely.transform(shape(feature["geometry"]), project) for feature in features]


def main(mapped: Path, predicted: Path, out: Path) -> None:
    ours, theirs = read(mapped), read(predicted)
    tree = shapely.STRtree(ours)
    found = []
    for number, polygon in enumerate(theirs):
        best, partner = 0.0, None
        for place in tree.query(polygon, predicate="intersects").tolist():
            shared = polygon.intersection(ours[place]).area
            iou = shared / (polygon.area + ours[place].area - shared)
            if iou > best:
                best, partner = iou, place
        metre = math.cosh(polygon.centroid.y / RADIUS)
        offset = polygon.centroid.distance(ours[partner].centroid) / metre if partner is not None else None
        evidence = polygon.buffer(-metre, join_style="mitre").area / polygon.area
        properties = {
            "mapped": partner,
            "predicted": number,
            "iou": best,
            "offset_m": offset,
            "evidence": evidence,
        }
        found.append({"type": "Feature", "properties": properties, "geometry": mapping(polygon)})
    out.write_text(json.dumps({"type": "FeatureCollection", "features": found}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
