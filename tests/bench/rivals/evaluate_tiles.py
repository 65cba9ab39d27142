"""Measure masks of two classes with Pillow and numpy alone: `evaluate_tiles.py LABELS MASKS OUT`.

All labels and all masks are one image each; boundaries are eroded step by step, as the authors of boundary IoU do.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def main(labels: Path, masks: Path, out: Path) -> None:
    paths = [(int(p.parent.name), int(p.stem), p) for p in sorted(labels.glob("*/*/*.png"))]
    side = Image.open(paths[0][2]).width
    distance = round(0.02 * np.hypot(side, side))
    left, top = (min(each[index] for each in paths) for index in (0, 1))
    shape = [(max(each[index] for each in paths) - first + 1) * side for index, first in ((1, top), (0, left))]
    whole = [np.zeros(shape, np.uint8) for _ in range(2)]
    for x, y, path in paths:
        place = np.s_[(y - top) * side : (y - top + 1) * side, (x - left) * side : (x - left + 1) * side]
        for image, folder in zip(whole, (labels, masks), strict=True):
            image[place] = Image.open(folder / path.relative_to(labels))
    edges = [[boundary(image == index, distance) for image in whole] for index in range(2)]
    matrix, lines = np.zeros((2, 2), int), ["x,y,iou\n"]
    for x, y, _ in paths:
        place = np.s_[(y - top) * side : (y - top + 1) * side, (x - left) * side : (x - left + 1) * side]
        found = np.bincount((whole[0][place] * 2 + whole[1][place]).ravel(), minlength=4).reshape(2, 2)
        matrix += found
        union = found[1].sum() + found[0, 1]
        lines.append(f"{x},{y},{found[1, 1] / union if union else ''}\n")
    both, either = (int(how(*edges[1]).sum()) for how in (np.logical_and, np.logical_or))
    out.write_text(json.dumps({"confusion": matrix.tolist(), "boundary_iou": both / either}))
    out.with_suffix(".csv").write_text("".join(lines))


def boundary(plane: np.ndarray, distance: int) -> np.ndarray:
    deep = np.pad(plane, 1, constant_values=True)
    for _ in range(distance):
        rows = deep[:-2] & deep[1:-1] & deep[2:]
        deep[1:-1, 1:-1] = rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:]
    return plane & ~deep[1:-1, 1:-1]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
