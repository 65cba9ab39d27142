"""How long a metre on the ground is in EPSG:3857.

A metre of EPSG:3857 is as long as a metre on the ground at the equator only: at 60 degrees north two of them are
one. EPSG:3857 draws the ellipsoid of WGS 84 (a, e squared) as if it were a sphere of the radius a, so its scale at
a latitude phi, to the east and to the north, is

    a / (N cos phi), N = a / sqrt(1 - e^2 sin^2 phi)
    a / (M cos phi), M = a (1 - e^2) / (1 - e^2 sin^2 phi)^(3/2)

with the radii of curvature of the ellipsoid (J. P. Snyder, Map Projections: A Working Manual, 1987, section 4).
The two differ by 0.7 % at the equator, and less elsewhere.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rsp.shared.mercator import RADIUS

Floats = npt.NDArray[np.float64]

# Of WGS 84: the square of its eccentricity.
_SQUARE = 0.00669437999014

# Over such a height, in metres of EPSG:3857, the scale changes by less than 0.2 %, since its logarithm changes by
# no more than y / RADIUS. Polygons less high have one scale, of others each part of the outline has its own.
BAND = 0.002 * RADIUS


def scale(y: Floats) -> Floats:
    """Return metres of EPSG:3857 a metre on the ground, to the east and to the north.

    Args:
        y: In metres of EPSG:3857, shape (n,).

    Returns:
        Shape (n, 2).
    """
    sine, cosine = np.tanh(y / RADIUS), 1 / np.cosh(y / RADIUS)
    squeezed = 1 - _SQUARE * sine**2
    return np.stack([np.sqrt(squeezed) / cosine, squeezed**1.5 / (1 - _SQUARE) / cosine], axis=1)
