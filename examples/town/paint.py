"""Paints a town as an aerial photograph sees it: sun from the south-south-east, and a sensor with noise."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import shapely
from PIL import Image, ImageDraw, ImageFilter

from examples.town.town import ROUNDABOUT, Building, Patch, Point, Road, Town

SUN_AZIMUTH, SUN_HEIGHT = math.radians(152), math.radians(44)
SUN = np.array([
    math.sin(SUN_AZIMUTH) * math.cos(SUN_HEIGHT),
    math.cos(SUN_AZIMUTH) * math.cos(SUN_HEIGHT),
    math.sin(SUN_HEIGHT),
], np.float32)  # fmt: skip
# What a thing one metre high throws, east and north, in metres.
THROW = (-math.sin(SUN_AZIMUTH) / math.tan(SUN_HEIGHT), -math.cos(SUN_AZIMUTH) / math.tan(SUN_HEIGHT))

CROWN = 26  # the largest crown in pixels
LEAVES = [(62, 84, 44), (74, 96, 50), (54, 72, 42), (92, 104, 56), (78, 88, 60), (112, 104, 58)]


class Canvas:
    """The picture in the making; places are metres around the middle of the town, y to the north."""

    def __init__(self, town: Town, resolution: float, rng: np.random.Generator) -> None:
        self.town, self.resolution, self.rng = town, resolution, rng
        self.width, self.height = (round(side / resolution) for side in town.size)
        self.fine = self.noise((resolution, 0.5), (0.7, 0.5), (1.6, 0.6), (4.0, 0.4))
        self.coarse = self.noise((9.0, 0.5), (28.0, 0.7), (100.0, 0.6))

    def noise(self, *octaves: tuple[float, float]) -> np.ndarray:
        """Return smooth noise, about -1..1: octaves of so many metres and so much weight."""
        total = np.zeros((self.height, self.width), np.float32)
        for metres, weight in octaves:
            scale = metres / self.resolution
            shape = (math.ceil(self.height / scale) + 2, math.ceil(self.width / scale) + 2)
            grain = (self.rng.random(shape, np.float32) * 2 - 1) * np.float32(weight)
            if scale > 1:
                grown = Image.fromarray(grain).resize((self.width, self.height), Image.Resampling.BICUBIC)
                grain = np.asarray(grown)
            total += grain[: self.height, : self.width]
        return total

    def pixels(self, ring: Iterable[Point], dx: float = 0.0, dy: float = 0.0) -> list[Point]:
        """Return a ring in pixels, shifted by so many metres."""
        west, north = self.width / 2 - 0.5, self.height / 2 - 0.5  # PIL counts from the middle of the first pixel
        return [((x + dx) / self.resolution + west, north - (y + dy) / self.resolution) for x, y in ring]

    def window(self, x0: float, y0: float, x1: float, y1: float) -> tuple[slice, slice]:
        """Return the rows and columns of a box, cut at the edge of the picture."""
        left, right = x0 / self.resolution + self.width / 2, x1 / self.resolution + self.width / 2
        top, bottom = self.height / 2 - y1 / self.resolution, self.height / 2 - y0 / self.resolution
        rows = slice(max(0, math.floor(top)), min(self.height, math.ceil(bottom)))
        return rows, slice(max(0, math.floor(left)), min(self.width, math.ceil(right)))

    # --- ground ---------------------------------------------------------------------------------------------

    def ground(self) -> np.ndarray:
        """Return fields, gardens, streets, markings and cars: one material a pixel, coloured in one go."""
        meadow = Patch((), (108, 116, 74), 10, 18)
        materials, index = [meadow], Image.new("I", (self.width, self.height))
        draw = ImageDraw.Draw(index)

        def lay(patches: Iterable[Patch]) -> None:
            for patch in patches:
                draw.polygon(self.pixels(patch.ring), fill=len(materials))
                materials.append(patch)

        lay(self.town.ground)
        self.streets(draw, materials)
        lay(self.town.paved)
        where = np.asarray(index)
        table = np.array([(*patch.color, patch.fine, patch.coarse) for patch in materials], np.float32)
        grain = self.fine * table[:, 3][where] + self.coarse * table[:, 4][where]
        rows = np.array([patch.rows for patch in materials], np.float32)
        furrowed = np.flatnonzero(rows[:, 2][where].ravel())
        angle, distance, contrast = rows[where.ravel()[furrowed]].T
        east, south = furrowed % self.width, furrowed // self.width
        across = (east * np.sin(angle) + south * np.cos(angle)) * self.resolution / distance
        grain.ravel()[furrowed] += np.sin(2 * math.pi * across).astype(np.float32) * contrast
        picture = table[:, :3][where]
        # Dry and lush differ in hue, not only in brightness.
        picture += grain[:, :, None] * np.array([1.0, 0.96, 0.8], np.float32)
        return picture

    def streets(self, draw: ImageDraw.ImageDraw, materials: list[Patch]) -> None:
        """Lay pavements, kerbs and asphalt, and the roundabout on top."""
        middle = shapely.Point(0, 0)

        def fill(shape: shapely.geometry.base.BaseGeometry, patch: Patch) -> None:
            for part in shapely.get_parts(shape):
                draw.polygon(self.pixels(part.exterior.coords), fill=len(materials))
            materials.append(patch)

        def band(road: Road, width: float, patch: Patch) -> None:
            axis = self.pixels(road.axis)
            draw.line(axis, fill=len(materials), width=max(1, round(width / self.resolution)), joint="curve")
            materials.append(patch)

        order = sorted(self.town.roads, key=lambda road: road.width)
        for road in order:
            tone = int(self.rng.integers(146, 168))
            band(road, road.width + 3.4, Patch((), (tone, tone - 4, tone - 12), 8, 8))
        for road in order:
            band(road, road.width + 0.8, Patch((), (178, 176, 170), 6, 4))
        for road in order:
            tone = int(self.rng.integers(98, 132))
            band(road, road.width, Patch((), (tone, tone, tone + 2), 6, 9))
        fill(middle.buffer(ROUNDABOUT + 2.5), Patch((), (160, 156, 146), 8, 8))
        fill(middle.buffer(ROUNDABOUT), Patch((), (112, 112, 114), 6, 8))
        fill(middle.buffer(8.4), Patch((), (190, 188, 180), 6, 4))
        fill(middle.buffer(7.4), Patch((), (96, 122, 62), 12, 8))
        # The markings of the streets end where the roundabout begins.
        self.town.paved[:] = [
            patch for patch in self.town.paved if min(math.hypot(x, y) for x, y in patch.ring) > ROUNDABOUT
        ]

    # --- shadows --------------------------------------------------------------------------------------------

    def shade(self, picture: np.ndarray, mask: Image.Image) -> None:
        """Darken what lies in shadow, red more than blue."""
        depth = np.asarray(mask.filter(ImageFilter.BoxBlur(0.7)), np.float32)[:, :, None] / 255
        picture *= 1 - depth * np.array([0.62, 0.58, 0.49], np.float32)

    def cast(self) -> Image.Image:
        """Return the shadows of buildings, cars and hedges."""
        mask = Image.new("L", (self.width, self.height))
        draw = ImageDraw.Draw(mask)

        def throw(ring: list[Point], height: float) -> None:
            dx, dy = THROW[0] * height, THROW[1] * height
            moved = [(x + dx, y + dy) for x, y in ring]
            hull = shapely.MultiPoint([*ring, *moved]).convex_hull
            draw.polygon(self.pixels(hull.exterior.coords), fill=255)

        for building in self.town.buildings:
            for wing in building.wings:
                throw(wing.ring(), building.height)
                if building.roof == "gable":  # the ridge stands above the eaves
                    cos, sin = math.cos(wing.angle) * wing.length / 2, math.sin(wing.angle) * wing.length / 2
                    ridge = [(wing.x - cos, wing.y - sin), (wing.x + cos, wing.y + sin)]
                    throw(ridge, building.height + wing.width / 2 * math.tan(building.pitch))
        for ring in self.town.shadows:
            dx, dy = THROW[0] * 1.3, THROW[1] * 1.3
            draw.polygon(self.pixels(ring, dx, dy), fill=200)
        # Cars are no darker for their own shadow.
        for ring in self.town.shadows:
            draw.polygon(self.pixels(ring), fill=0)
        return mask

    # --- roofs ----------------------------------------------------------------------------------------------

    def roof(self, picture: np.ndarray, building: Building) -> None:
        """Paint a roof: the highest of its wings at each pixel, lit by the way it faces."""
        window = self.window(*building.footprint.bounds)
        rows, columns = window
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return
        x = (np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5 - self.width / 2) * self.resolution
        y = (self.height / 2 - np.arange(rows.start, rows.stop, dtype=np.float32) - 0.5) * self.resolution
        shape = (y.size, x.size)
        top, edge = np.full(shape, -1, np.float32), np.full(shape, -1, np.float32)
        light, along, crest = np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros(shape, bool)
        slope = math.tan(building.pitch)
        for wing in building.wings:
            cos, sin = math.cos(wing.angle), math.sin(wing.angle)
            dx, dy = x[None, :] - wing.x, y[:, None] - wing.y
            u, v = dx * cos + dy * sin, dy * cos - dx * sin
            ends, sides = wing.length / 2 - np.abs(u), wing.width / 2 - np.abs(v)
            inside = np.minimum(ends, sides)
            hip = building.roof == "hip"
            rise = inside * slope if hip else sides * slope
            height = np.where(inside >= 0, np.maximum(rise, 0), -1)
            better = height > top if building.roof != "flat" else inside > edge
            at_end = hip & (ends < sides)
            facing_u, facing_v = np.where(at_end, np.sign(u), 0), np.where(at_end, 0, np.sign(v))
            lean, up = math.sin(building.pitch), math.cos(building.pitch)
            east, north = facing_u * cos - facing_v * sin, facing_u * sin + facing_v * cos
            lit = lean * (east * SUN[0] + north * SUN[1]) + up * SUN[2]
            light = np.where(better, lit, light)
            along = np.where(better, u, along)
            crest = np.where(better, (wing.width / 2 - sides > wing.width / 2 - 0.3) | (np.abs(v) < 0.3), crest)
            top = np.where(better, height, top)
            edge = np.maximum(edge, inside)
        covered = edge >= 0
        color = np.array(building.color, np.float32)
        factor = 0.36 + 0.64 * np.maximum(light, 0) / float(SUN[2])
        factor = factor * (1 + 0.05 * self.fine[window]) + 0.035 * self.coarse[window]
        if building.roof == "flat":
            factor += np.where(edge < 0.6, 0.16, 0) - np.where((edge >= 0.6) & (edge < 1.2), 0.08, 0)
            if min(building.wings[0].length, building.wings[0].width) > 14:  # halls have seams in their roof
                factor += np.where(np.abs(along) % 6.0 < 0.45, 0.07, 0)
        else:
            factor += np.where(crest, 0.1, 0) - np.where(edge < 0.35, 0.06, 0)
            factor += 0.03 * np.sin(along * 2 * math.pi / 1.1)
        target = picture[window]
        np.copyto(target, color * factor[:, :, None], where=covered[:, :, None])
        self.furnish(picture, building)
        if building.panels:
            place = covered & (light > 0.62) & (edge > 1.0) & (np.abs(along) < building.wings[0].length * 0.3)
            navy = np.array((38, 46, 68), np.float32) * (1 + 0.25 * (np.abs(along) % 1.7 < 0.4))[:, :, None]
            np.copyto(target, navy.astype(np.float32), where=place[:, :, None])

    def furnish(self, picture: np.ndarray, building: Building) -> None:
        """Put chimneys and roof windows on a roof, or machines and skylights on a flat one."""
        main = building.wings[0]
        if building.kind == "garage":
            return
        flat = building.roof == "flat"
        count = int(main.length * main.width / 160) + 1 if flat else int(self.rng.integers(1, 4))
        for u, v in self.rng.uniform(-0.4, 0.4, (count, 2)):
            cos, sin = math.cos(main.angle), math.sin(main.angle)
            east = main.x + u * main.length * cos - v * main.width * sin
            north = main.y + u * main.length * sin + v * main.width * cos
            size = self.rng.uniform(1.2, 2.6) if flat else 0.9
            dark = self.rng.random() < 0.4
            if not dark:
                self.block(picture, east + THROW[0] * 1.2, north + THROW[1] * 1.2, size, (0.55, 0.58, 0.64))
            tone = (0.5, 0.55, 0.64) if dark else (1.18, 1.12, 1.08)
            self.block(picture, east, north, size, tone)

    def block(
        self, picture: np.ndarray, x: float, y: float, size: float, tone: tuple[float, float, float]
    ) -> None:
        """Darken or brighten a small square."""
        picture[self.window(x - size / 2, y - size / 2, x + size / 2, y + size / 2)] *= np.array(tone, np.float32)

    # --- trees ----------------------------------------------------------------------------------------------

    def crowns(self) -> dict[int, list[tuple[np.ndarray, np.ndarray]]]:
        """Return stamps of tree crowns by radius in pixels: how much they cover, and how bright they are."""
        stamps = {}
        for radius in range(2, CROWN + 1):
            side = 2 * radius + 3
            dy, dx = np.mgrid[-radius - 1 : radius + 2, -radius - 1 : radius + 2].astype(np.float32)
            stamps[radius] = []
            for _ in range(5):
                angle, wave = np.arctan2(dy, dx), self.rng.uniform(0, 6.3, 3)
                bound = radius * (
                    0.86 + 0.09 * np.sin(3 * angle + wave[0]) + 0.07 * np.sin(5 * angle + wave[1])
                    + 0.05 * np.sin(8 * angle + wave[2])
                )  # fmt: skip
                far = np.hypot(dx, dy)
                cover = np.clip(bound - far + 0.5, 0, 1)
                dome = np.sqrt(np.clip(1 - (far / (radius + 0.5)) ** 2, 0, 1))
                lit = (dx * SUN[0] - dy * SUN[1]) / (radius + 0.5) + dome * SUN[2]
                lumps = np.zeros((side, side), np.float32)
                for metres in (0.4, 1.0):  # leaves, and boughs
                    grain = self.rng.normal(0, 0.7, (math.ceil(side * self.resolution / metres) + 1,) * 2)
                    grown = Image.fromarray(grain.astype(np.float32)).resize(
                        (side, side), Image.Resampling.BICUBIC
                    )
                    lumps += np.asarray(grown)
                stamps[radius].append((cover, 0.5 + 0.72 * lit + 0.25 * lumps))
        return stamps

    def trees(self, picture: np.ndarray) -> None:
        """Plant the trees: all shadows first (roofs take them too), then the crowns."""
        mask = Image.new("L", (self.width, self.height))
        draw = ImageDraw.Draw(mask)
        for x, y, radius, _ in self.town.trees:
            ring = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in np.arange(0, 6.28, 0.7)]
            for height in (0.4, 1.0, 1.6):
                draw.polygon(self.pixels(ring, THROW[0] * height * radius, THROW[1] * height * radius), fill=215)
        self.shade(picture, mask)
        stamps = self.crowns()
        for x, y, radius, kind in self.town.trees:
            size = min(CROWN, max(2, round(radius / self.resolution)))
            cover, lit = stamps[size][int(self.rng.integers(5))]
            column = round(x / self.resolution + self.width / 2) - size - 1
            row = round(self.height / 2 - y / self.resolution) - size - 1
            top, left = max(0, -row), max(0, -column)
            target = picture[max(0, row) : row + len(cover), max(0, column) : column + len(cover)]
            if row + len(cover) <= 0 or column + len(cover) <= 0 or not target.size:
                continue
            cover = cover[top : top + target.shape[0], left : left + target.shape[1], None]
            lit = lit[top : top + target.shape[0], left : left + target.shape[1], None]
            target += cover * (np.array(LEAVES[kind], np.float32) * lit - target)

    def paint(self) -> np.ndarray:
        """Return the photograph: shape (height, width, 3), uint8."""
        picture = self.ground()
        self.shade(picture, self.cast())
        for building in sorted(self.town.buildings, key=lambda building: building.height):
            self.roof(picture, building)
        self.trees(picture)
        # Haze, the sensor's blur, and its noise.
        picture *= np.float32(1.02)
        picture += self.coarse[:, :, None] * np.float32(1.5) + np.array([9, 11, 16], np.float32)
        sharp = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
        blurred = np.asarray(sharp.filter(ImageFilter.GaussianBlur(0.62)), np.float32)
        grain = self.rng.standard_normal(blurred.shape, np.float32) * np.float32(3.2)
        return np.clip(blurred + grain, 0, 255).astype(np.uint8)
