"""Lays out an imaginary town. Everything follows from one seed."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import shapely
from shapely import Polygon
from shapely.geometry.base import BaseGeometry

from examples.town.town import ROUNDABOUT, Building, Patch, Point, Road, Town, Wing

# The street lattice: its spacing along and across in metres, and its turn against the grid.
ALONG, ACROSS, TURN = 84.0, 58.0, math.radians(16)

ROOFS = {  # colour of the roof in full sun
    "tile": [(158, 104, 84), (142, 90, 74), (126, 82, 68), (170, 122, 98), (120, 88, 76), (132, 104, 92)],
    "slate": [(82, 86, 98), (92, 94, 104), (76, 78, 86), (116, 114, 114)],  # the last one is asphalt's
    "flat": [(206, 204, 198), (214, 212, 206), (198, 196, 192), (220, 218, 214)],
    "metal": [(112, 136, 166), (186, 194, 200), (150, 92, 80)],
}
GRASS = [(104, 118, 68), (92, 110, 62), (118, 126, 76), (126, 124, 82), (98, 116, 72)]
CROPS = [(112, 128, 66), (86, 112, 58), (176, 160, 104), (146, 122, 92), (132, 138, 78), (168, 148, 110)]
SITES = {"construction": (176, 160, 134), "ruins": (138, 124, 102), "greenhouse": (190, 200, 196)}
CARS = [(225, 225, 225), (190, 192, 196), (52, 54, 58), (90, 92, 98), (150, 42, 40), (48, 72, 120), (28, 28, 30)]


@dataclass(frozen=True)
class Frame:
    """A side of a block: from the kerb inward (`v`), and along the street (`u`)."""

    x: float
    y: float
    angle: float
    inward: int

    def at(self, u: float, v: float) -> Point:
        """Return the point `u` metres along and `v` metres inward."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        v *= self.inward
        return self.x + u * cos - v * sin, self.y + u * sin + v * cos

    def quad(self, u0: float, v0: float, u1: float, v1: float) -> tuple[Point, ...]:
        """Return a rectangle along the street."""
        return self.at(u0, v0), self.at(u1, v0), self.at(u1, v1), self.at(u0, v1)


class Planner:
    """Lays out a town."""

    def __init__(self, size: Point, rng: np.random.Generator) -> None:
        self.town = Town(size)
        self.rng = rng
        self.radius = min(size) / 2
        self.phases = rng.uniform(0, 2 * math.pi, 6)
        self.sector = rng.uniform(0, 2 * math.pi)
        reach = math.hypot(*size) / 2 + ALONG
        self.columns = range(-math.ceil(reach / ALONG), math.ceil(reach / ALONG))
        self.rows = range(-math.ceil(reach / ACROSS), math.ceil(reach / ACROSS))
        self.zones = {(i, j): self.zone(i, j) for i in self.columns for j in self.rows}
        self.edges: dict[tuple[str, int, int], float] = {}  # the streets of the lattice and their width
        self.blocked: BaseGeometry = Polygon()

    def node(self, s: float, t: float) -> Point:
        """Return where a place of the lattice lies: turned, and bent by long waves."""
        x = s * ALONG * math.cos(TURN) - t * ACROSS * math.sin(TURN)
        y = s * ALONG * math.sin(TURN) + t * ACROSS * math.cos(TURN)
        a, b, c, d, *_ = self.phases
        bend = min(1.0, math.hypot(x, y) / 150)  # the middle stays straight, around the roundabout
        return (
            x + bend * (34 * math.sin(y / 200 + a) + 7 * math.sin((x + y) / 80 + b)),
            y + bend * (30 * math.sin(x / 220 + c) + 6 * math.sin((x - y) / 85 + d)),
        )

    def zone(self, i: int, j: int) -> str:
        """Return what a block of the lattice is used for."""
        x, y = self.node(i + 0.5, j + 0.5)
        r, angle = math.hypot(x, y) / self.radius, math.atan2(y, x)
        if (i, j) in ((0, 0), (-1, 0), (0, -1), (-1, -1)) or r < 0.34:
            return "centre"
        if (angle - self.sector) % (2 * math.pi) < 0.6 and 0.5 < r < 1.3:
            return "industry"
        if r < 1.12 + 0.2 * math.sin(3 * angle + self.phases[4]):
            return "park" if self.rng.random() < 0.03 else "suburb"
        return "wood" if self.rng.random() < 0.12 else "field"

    def plan(self) -> Town:
        """Return the town."""
        self.streets()
        for (i, j), zone in self.zones.items():
            corners = (self.node(i, j), self.node(i + 1, j), self.node(i + 1, j + 1), self.node(i, j + 1))
            getattr(self, zone)(i, j, corners)
        self.prune()
        return self.town

    def prune(self) -> None:
        """Fell the trees that would hide a roof: a crown may hang over its edge, no more."""
        roofs = shapely.STRtree([building.footprint for building in self.town.buildings])
        trunks = shapely.points([tree[:2] for tree in self.town.trees])
        near = roofs.query(trunks, "dwithin", [0.7 * tree[2] for tree in self.town.trees])[0]
        hiding = set(near.tolist())
        self.town.trees[:] = [tree for number, tree in enumerate(self.town.trees) if number not in hiding]

    # --- streets --------------------------------------------------------------------------------------------

    def streets(self) -> None:
        """Choose the edges of the lattice that are streets, and join those of a line into ways."""
        wide = {0: ("primary", 10.5, 3)}
        lines: dict[tuple[str, int], list[int]] = defaultdict(list)
        for i in self.columns:
            for j in self.rows:
                for way, other in (("v", (i - 1, j)), ("h", (i, j - 1))):
                    line, at = (i, j) if way == "v" else (j, i)
                    built = {self.zones.get((i, j), "field"), self.zones.get(other, "field")} - {"field", "wood"}
                    through = line == 0 or (line % 4 == 0 and abs(line) < 9)
                    if through or (built and self.rng.random() < 0.88):
                        lines[way, line].append(at)
        for (way, line), ats in sorted(lines.items()):
            highway, width, lanes = wide.get(line, ("residential", float(self.rng.choice([5.0, 5.6, 6.4])), 2))
            if line and line % 4 == 0:
                highway, width, lanes = "secondary", 8.0, 2
            oneway = highway == "residential" and self.rng.random() < 0.2
            if oneway:
                width, lanes = 4.2, 1
            runs: list[list[int]] = []
            for at in sorted(ats):
                if runs and runs[-1][-1] == at - 1:
                    runs[-1].append(at)
                else:
                    runs.append([at])
                i, j = (line, at) if way == "v" else (at, line)
                self.edges[way, i, j] = width
            for run in runs:
                steps = [at + k / 8 for at in (*run, run[-1] + 1) for k in range(8)][: 8 * len(run) + 1]
                axis = tuple(self.node(line, s) if way == "v" else self.node(s, line) for s in steps)
                self.town.roads.append(Road(axis, highway, width, lanes, oneway))
        zones = [shapely.LineString(road.axis).buffer(road.width / 2 + 2.0) for road in self.town.roads]
        self.blocked = shapely.union_all([*zones, shapely.Point(0, 0).buffer(ROUNDABOUT + 6)])
        shapely.prepare(self.blocked)
        for road in self.town.roads:
            self.traffic(road)

    def traffic(self, road: Road) -> None:
        """Put markings and cars on a street."""
        line = shapely.LineString(road.axis)
        if road.lanes >= 2 and road.width > 6:
            lanes = [0.0] if road.lanes == 2 else [-1.9, 1.9]
            for offset in lanes:
                for start in np.arange(4, line.length - 4, 7.5 if road.lanes == 2 else 6):
                    ring = self.along(line, start, offset, 3.0, 0.42)
                    self.town.paved.append(Patch(ring, (208, 206, 198), 6, 2))
        if road.highway != "residential":
            for side in (-1, 1):
                for start in np.arange(0, line.length - 12, 12):
                    ring = self.along(line, start, side * (road.width / 2 - 0.4), 12.2, 0.4)
                    self.town.paved.append(Patch(ring, (190, 188, 182), 6, 2))
        count = self.rng.poisson(line.length / 55)
        for start in self.rng.uniform(0, max(line.length - 6, 1), count):
            side = self.rng.choice([-1, 1])
            parked = road.highway == "residential" and self.rng.random() < 0.6
            offset = side * (road.width / 2 - 1.1 if parked else road.width / 4)
            x, y = line.interpolate(start).coords[0]
            if math.hypot(x, y) > ROUNDABOUT + 8:
                self.car(*self.spot(line, start, offset))

    def spot(self, line: shapely.LineString, start: float, offset: float) -> tuple[float, float, float]:
        """Return a place beside the axis of a street, and the direction there."""
        (x0, y0), (x1, y1) = line.interpolate(start).coords[0], line.interpolate(start + 0.5).coords[0]
        angle = math.atan2(y1 - y0, x1 - x0)
        return x0 - offset * math.sin(angle), y0 + offset * math.cos(angle), angle

    def along(
        self, line: shapely.LineString, start: float, offset: float, length: float, width: float
    ) -> tuple[Point, ...]:
        """Return a thin rectangle along a street."""
        x, y, angle = self.spot(line, start, offset)
        cos, sin = math.cos(angle) * length / 2, math.sin(angle) * length / 2
        return tuple(Wing(x + cos, y + sin, angle, length, width).ring())

    def car(self, x: float, y: float, angle: float) -> None:
        """Park a car."""
        length, width = (7.5, 2.4) if self.rng.random() < 0.04 else (self.rng.uniform(3.9, 4.7), 1.85)
        body = CARS[self.rng.integers(len(CARS))]
        cos, sin = math.cos(angle), math.sin(angle)
        self.town.paved.append(Patch(tuple(Wing(x, y, angle, length, width).ring()), body, 3, 0))
        glass = Wing(x + 0.2 * length * cos, y + 0.2 * length * sin, angle, 0.7, width * 0.8)
        self.town.paved.append(Patch(tuple(glass.ring()), (46, 52, 60), 3, 0))
        self.town.shadows.append(Wing(x, y, angle, length, width).ring())

    # --- blocks ---------------------------------------------------------------------------------------------

    def sides(self, i: int, j: int) -> list[tuple[Frame, float, float]]:
        """Return the sides of a block that lie at a street: frame at the kerb, length, depth to its middle."""
        found = []
        for way, a, b, inward in (
            ("h", (i, j), (i + 1, j), 1),
            ("h", (i, j + 1), (i + 1, j + 1), -1),
            ("v", (i, j), (i, j + 1), -1),
            ("v", (i + 1, j), (i + 1, j + 1), 1),
        ):
            width = self.edges.get((way, *a))
            if width is None:
                continue
            (x0, y0), (x1, y1) = self.node(*a), self.node(*b)
            angle, depth = math.atan2(y1 - y0, x1 - x0), ACROSS if way == "h" else ALONG
            frame = Frame(x0, y0, angle, inward)
            start = frame.at(0, width / 2 + 1.8)
            found.append((Frame(*start, angle, inward), math.dist((x0, y0), (x1, y1)), depth / 2))
        return found

    def add(
        self, placed: list[Polygon], wings: list[Wing], kind: str, roof: str, material: str, gap: float
    ) -> bool:
        """Build, unless a street or another building is in the way."""
        rings = [shapely.Polygon(wing.ring()) for wing in wings]
        footprint = shapely.union_all(rings) if len(rings) > 1 else rings[0]
        if not isinstance(footprint, Polygon):
            return False
        x0, y0, x1, y1 = footprint.bounds
        if max(-x0, x1) > self.town.size[0] / 2 - 2 or max(-y0, y1) > self.town.size[1] / 2 - 2:
            return False
        room = footprint.buffer(gap) if gap > 0 else footprint.buffer(-0.2)
        if shapely.intersects(self.blocked, footprint) or any(room.intersects(other) for other in placed):
            return False
        placed.append(footprint)
        colors = ROOFS[material]
        color = np.clip(np.array(colors[self.rng.integers(len(colors))]) + self.rng.normal(0, 4, 3), 30, 225)
        flat = roof == "flat"
        height = self.rng.uniform(5, 8) if kind in ("house", "detached", "terrace") else self.rng.uniform(7, 12)
        self.town.buildings.append(
            Building(
                tuple(wings), kind, roof, 2.8 if kind == "garage" else height,
                0.0 if flat else math.radians(self.rng.uniform(24, 42)),
                (int(color[0]), int(color[1]), int(color[2])), shapely.normalize(footprint),
                panels=bool(self.rng.random() < (0.1 if kind in ("detached", "industrial") else 0.0)),
            )
        )  # fmt: skip
        return True

    def suburb(self, i: int, j: int, corners: tuple[Point, ...]) -> None:
        """Build single houses with gardens along the streets of a block."""
        rng, placed = self.rng, []
        self.town.ground.append(Patch(corners, GRASS[rng.integers(len(GRASS))], 11, 16))
        for frame, length, depth in self.sides(i, j):
            u = 6.0
            while u < length - 16:
                lot = rng.uniform(13, 18)
                self.lot(frame, u, lot, depth, placed)
                u += lot

    def lot(self, frame: Frame, u: float, lot: float, depth: float, placed: list[Polygon]) -> None:
        """Build one house with its garden, drive, terrace, pool, hedge and trees."""
        rng = self.rng
        lawn = np.array(GRASS[rng.integers(len(GRASS))]) + rng.normal(0, 7, 3)
        lawn = (int(lawn[0]), int(lawn[1]), int(lawn[2]))
        length, width = rng.uniform(10, min(15, lot - 2.5)), rng.uniform(8, 10.5)
        setback = rng.uniform(2.5, 7)
        angle = frame.angle + rng.normal(0, 0.03) + (math.pi / 2 if rng.random() < 0.3 else 0)
        if angle > frame.angle + 1:
            length, width = min(length, 12.0), min(width, 10.0)
        x, y = frame.at(u + lot / 2, setback + 5)
        wings = [Wing(x, y, angle, length, width)]
        shape = rng.random()
        if shape < 0.42:  # an L or a T
            cos, sin = math.cos(angle), math.sin(angle)
            shift = rng.choice([-1, 1]) * (length / 2 - 2.6) if shape < 0.3 else 0.0
            out = rng.choice([-1, 1]) * width / 2
            wing = rng.uniform(5, 5.2), rng.uniform(7, 9.5)
            mx, my = x + shift * cos - out * sin, y + shift * sin + out * cos
            wings.append(Wing(mx, my, angle + math.pi / 2, wing[1], wing[0]))
        material = rng.choice(["tile", "slate", "flat", "metal"], p=[0.78, 0.11, 0.09, 0.02])
        roof = "flat" if material == "flat" else str(rng.choice(["gable", "hip"], p=[0.62, 0.38]))
        ground, paved = self.town.ground, int(rng.integers(138, 166))
        plot = frame.quad(u, -0.3, u + lot, depth - 3)
        if not self.add(placed, wings, "detached", roof, material, 2.2):
            if rng.random() < 0.5:
                self.scatter(plot, 3, 1.6, 4.2)
            return
        ground.append(Patch(plot, lawn, 11, 12))
        drive = u + rng.choice([1.0, lot - 4.0])
        ground.append(Patch(frame.quad(drive, -1, drive + 3, setback + 5), (paved, paved - 3, paved - 10)))
        if rng.random() < 0.5:
            tone = rng.choice([142, 154, 166])
            back = setback + 5 + width / 2
            ground.append(Patch(frame.quad(u + 3, back, u + 3 + rng.uniform(4, 9), back + 4.0),
                                (int(tone), int(tone) - 8, int(tone) - 20)))  # fmt: skip
        if rng.random() < 0.22:
            spot = frame.at(drive + 1.5, setback + 15)
            self.add(placed, [Wing(*spot, frame.angle, 3.4, 6.0)], "garage", "flat", "flat", 0.8)
        elif rng.random() < 0.6:
            self.car(*frame.at(drive + 1.5, rng.uniform(2, 3.5)), frame.angle + math.pi / 2)
        if rng.random() < 0.1 and depth > 28:
            pool = Wing(*frame.at(u + lot / 2, depth - 9), frame.angle, rng.uniform(6, 9), 4)
            rim = Wing(pool.x, pool.y, pool.angle, pool.length + 1.6, pool.width + 1.6)
            ground.append(Patch(tuple(rim.ring()), (196, 190, 178), 5, 3))
            ground.append(Patch(tuple(pool.ring()), (70, 150, 178), 4, 3))
        if rng.random() < 0.45:
            hedge = frame.quad(u + 0.3, 0.5, u + 1.2, depth - 4)
            self.town.ground.append(Patch(hedge, (58, 76, 44), 16, 6))
            self.town.shadows.append(list(hedge))
        self.scatter(plot, int(rng.integers(0, 4)), 1.3, 4.0)

    def scatter(self, ring: tuple[Point, ...], count: int, low: float, high: float) -> None:
        """Plant trees in a quadrilateral; a crown may hang over a roof, a trunk stands in no street."""
        a, b, c, d = map(np.array, ring)
        for s, t in self.rng.random((count, 2)):
            x, y = (a * (1 - s) + b * s) * (1 - t) + (d * (1 - s) + c * s) * t
            inside = self.town.buildings[-1].footprint if self.town.buildings else Polygon()
            if not shapely.intersects_xy(self.blocked, x, y) and not shapely.intersects_xy(inside, x, y):
                kind = self.rng.integers(6)
                self.town.trees.append((float(x), float(y), float(self.rng.uniform(low, high)), int(kind)))

    def centre(self, i: int, j: int, corners: tuple[Point, ...]) -> None:
        """Build closed rows, or one complex around a courtyard."""
        rng, placed = self.rng, []
        self.town.ground.append(Patch(corners, (150, 144, 134), 9, 10))
        if (i + j) % 2 == 0:
            x, y = self.node(i + 0.5, j + 0.5)
            (x0, y0), (x1, y1) = self.node(i, j + 0.5), self.node(i + 1, j + 0.5)
            angle = math.atan2(y1 - y0, x1 - x0)
            ends = (1,) if i and rng.random() < 0.4 else (1, -1)  # open to one side, but for the one in the middle
            for length, width in ((70, 44), (64, 40), (58, 36), (52, 34), (46, 31)):
                if self.courtyard(placed, (x, y), angle, (length, width), ends):
                    yard = tuple(Wing(x, y, angle, length - 24, width - 24).ring())
                    self.town.ground.append(Patch(yard, GRASS[0] if rng.random() < 0.5 else (162, 154, 142)))
                    self.scatter(yard, 4, 1.5, 3)
                    return
        for frame, length, depth in self.sides(i, j):
            u = 3.0
            while u < length - 10:
                lot, deep = rng.uniform(8, 14), rng.uniform(9.5, 12)
                x, y = frame.at(u + lot / 2, 2.2 + deep / 2)
                material = str(rng.choice(["tile", "slate", "flat"], p=[0.78, 0.14, 0.08]))
                wings = [Wing(x, y, frame.angle, lot, deep)]
                if rng.random() < 0.25 and depth > deep + 12:
                    back = frame.at(u + lot / 2, 2.2 + deep + 2)
                    wings.append(Wing(*back, frame.angle + math.pi / 2, 9, 4.6))
                roof = "flat" if material == "flat" else "gable"
                self.add(placed, wings, str(rng.choice(["terrace", "apartments"])), roof, material, 0)
                u += lot + (4 if rng.random() < 0.12 else 0)
        outline = np.array(corners)
        inner = outline.mean(0) + (outline - outline.mean(0)) * 0.35
        yard = tuple((float(px), float(py)) for px, py in inner)
        self.town.ground.append(Patch(yard, GRASS[1], 10, 12))
        self.scatter(yard, 6, 1.6, 3.6)

    def courtyard(
        self, placed: list[Polygon], middle: Point, angle: float, size: Point, ends: tuple[int, ...]
    ) -> bool:
        """Build four wings around a yard, or three that leave it open."""
        (x, y), (length, width) = middle, size
        cos, sin, deep = math.cos(angle), math.sin(angle), 11.5
        u, v = (length - deep) / 2, (width - deep) / 2
        wings = [Wing(x - side * v * sin, y + side * v * cos, angle, length, deep) for side in (1, -1)]
        across = angle + math.pi / 2
        wings += [Wing(x + side * u * cos, y + side * u * sin, across, width, deep) for side in ends]
        material = str(self.rng.choice(["tile", "slate"], p=[0.75, 0.25]))
        return self.add(placed, wings, "apartments", str(self.rng.choice(["gable", "hip"])), material, 1)

    def industry(self, i: int, j: int, corners: tuple[Point, ...]) -> None:
        """Build halls with yards and car parks; sometimes a site where building is going on."""
        rng, placed = self.rng, []
        tone = int(rng.integers(120, 140))
        self.town.ground.append(Patch(corners, (tone, tone - 2, tone - 8), 8, 14))
        x, y = self.node(i + 0.5, j + 0.5)
        (x0, y0), (x1, y1) = self.node(i, j + 0.5), self.node(i + 1, j + 0.5)
        frame = Frame(x, y, math.atan2(y1 - y0, x1 - x0), 1)
        if rng.random() < 0.22:
            kind = str(rng.choice(list(SITES)))
            color = SITES[kind]
            ring = frame.quad(-18, -12, 12, 10)
            self.town.ground.append(Patch(ring, color, 22, 26, (frame.angle, 3.0, 14.0)))
            self.town.sites.append((kind, Polygon(ring)))
        else:
            split = rng.random()
            halls = [(-18, 0, 32, 36), (16, 0, 26, 30)] if split < 0.5 else [(-4, 2, 54, 30)]
            for u, v, length, width in halls:
                size = rng.uniform(0.75, 1)
                wings = [Wing(*frame.at(u, v), frame.angle, length * size, width * size)]
                if rng.random() < 0.3:
                    wings.append(Wing(*frame.at(u, v - width * size / 2), frame.angle, length * size * 0.4, 14))
                roof = "flat" if rng.random() < 0.75 else "gable"
                material = str(rng.choice(["flat", "metal"]))
                self.add(placed, wings, str(rng.choice(["industrial", "retail"])), roof, material, 1)
        lot = frame.quad(-36, -27, 36, -21) if rng.random() < 0.7 else None
        if lot:
            self.town.ground.append(Patch(lot, (110, 110, 112), 7, 6))
            for u in np.arange(-35, 35, 2.8):
                self.town.ground.append(Patch(frame.quad(u - 0.15, -26, u + 0.2, -21), (188, 188, 184), 5, 2))
                spot = frame.at(u + 1.4, -23.5)
                if rng.random() < 0.4 and not any(shapely.intersects_xy(other, *spot) for other in placed):
                    self.car(*spot, frame.angle + math.pi / 2)
        self.scatter(frame.quad(-38, 24, 38, 28), 6, 1.5, 3.2)

    def park(self, i: int, j: int, corners: tuple[Point, ...]) -> None:
        """Lay out lawns, paths, a playing field and many trees."""
        self.town.ground.append(Patch(corners, GRASS[self.rng.integers(len(GRASS))], 11, 16))
        x, y = self.node(i + 0.5, j + 0.5)
        frame = Frame(x, y, TURN + self.rng.uniform(-0.1, 0.1), 1)
        self.town.ground.append(Patch(frame.quad(-44, -2, 44, 0.5), (186, 174, 148), 8, 6))
        color = (164, 96, 74) if self.rng.random() < 0.25 else (92, 128, 66)
        self.town.ground.append(Patch(frame.quad(-30, 6, 6, 24), color, 6, 6))
        for quad in ((-30, 6, 6, 6.4), (-30, 23.6, 6, 24), (-12, 6, -11.6, 24)):
            self.town.ground.append(Patch(frame.quad(*quad), (216, 214, 206), 4, 2))
        self.scatter(frame.quad(-40, -26, 40, -4), 26, 2, 5)
        self.scatter(frame.quad(10, 4, 40, 26), 14, 2, 5)

    def field(self, i: int, j: int, corners: tuple[Point, ...]) -> None:
        """Plough, sow or mow; a hedgerow here and there, seldom a farm."""
        rng = self.rng
        angle = TURN + (math.pi / 2 if rng.random() < 0.5 else 0) + rng.normal(0, 0.05)
        rows = (angle, float(rng.uniform(1.6, 4)), float(rng.uniform(2, 9)))
        self.town.ground.append(Patch(corners, CROPS[rng.integers(len(CROPS))], 8, 18, rows))
        if rng.random() < 0.4:
            a, b = np.array(corners[0]), np.array(corners[1 + 2 * int(rng.integers(2))])
            for s in rng.random(14):
                x, y = a + (b - a) * s + rng.normal(0, 0.8, 2)
                if not shapely.intersects_xy(self.blocked, x, y):
                    self.town.trees.append((float(x), float(y), float(rng.uniform(1.5, 4)), int(rng.integers(6))))
        if rng.random() < 0.2:
            x, y = self.node(i + 0.5, j + 0.4)
            placed: list[Polygon] = []
            yard = Wing(x, y, TURN, 52, 36).ring()
            self.town.ground.append(Patch(tuple(yard), (164, 154, 136), 12, 14))
            for u, v, length, width in ((-12, 6, 30, 13), (12, 6, 13, 26)):
                wing = Wing(x + u, y + v, TURN, length, width)
                self.add(placed, [wing], "farm_auxiliary", "gable", str(rng.choice(["tile", "metal"])), 0.5)
            self.scatter(tuple(yard), 6, 2, 4.5)

    def wood(self, i: int, j: int, corners: tuple[Point, ...]) -> None:
        """Plant a wood."""
        self.town.ground.append(Patch(corners, (66, 82, 46), 14, 10))
        self.scatter(corners, 330, 2.2, 4.8)


def plan_town(size: Point, seed: int) -> Town:
    """Return the town of this seed that fills a rectangle of this size in metres."""
    return Planner(size, np.random.default_rng(seed)).plan()
