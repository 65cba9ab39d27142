"""The numbers of web mercator (EPSG:3857), each in one place."""

from __future__ import annotations

import math

# Radius of its sphere in metres.
RADIUS = 6378137.0

# Half of its circumference in metres: the square of the tile grid reaches from -HALF to HALF both ways.
HALF = math.pi * RADIUS

# All around it.
AROUND = 2 * HALF

# Latitude in degrees where that square ends, to the north and to the south.
MAX_LATITUDE = math.degrees(2 * math.atan(math.exp(math.pi)) - math.pi / 2)
