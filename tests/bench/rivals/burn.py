"""Cover features with supermercado: python burn.py FEATURES.json ZOOM COVER.csv."""

import json
import sys
from pathlib import Path

from supermercado import burntiles

source, zoom, out = sys.argv[1:]
features = json.loads(Path(source).read_text())["features"]
tiles = burntiles.burn(features, int(zoom))
Path(out).write_text("".join(f"{x},{y},{z}\n" for x, y, z in sorted(map(tuple, tiles.tolist()))))
