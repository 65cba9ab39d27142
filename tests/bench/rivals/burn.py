"""Cover features with supermercado: python burn.py FEATURES.json ZOOM COVER.csv."""

import json
import sys
from pathlib import Path

from supermercado import burntiles

source, zoom, out = sys.argv[1:]
features = json.loads(Path(source).read_text())["features"]
tiles = burntiles.burn(features, int(zoom))
# All lines at once is the quickest that we know, and they are in the order of rows.
Path(out).write_text("%d,%d,%d\n" * len(tiles) % tuple(tiles.ravel().tolist()))
