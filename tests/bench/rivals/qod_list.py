"""Score masks against labels with Pillow and numpy alone: `qod_list.py LABELS MASKS OUT`."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image


def main(labels: Path, masks: Path, out: Path) -> None:
    paths = [(int(p.parent.name), int(p.stem), int(p.parent.parent.name), p) for p in labels.glob("*/*/*.png")]
    lines = []
    for x, y, z, path in sorted(paths):
        label = np.asarray(Image.open(path)) != 0
        mask = np.asarray(Image.open(masks / path.relative_to(labels))) != 0
        labelled, masked = np.count_nonzero(label), np.count_nonzero(mask)
        hit = np.count_nonzero(label & mask)
        union = labelled + masked - hit
        distance = 1 - hit / union if union else 0.0
        fg = 100 * max(labelled, masked) / label.size
        qod = max(0.0, 100 - distance * (np.log(fg + 1) + np.finfo(float).eps) * 100 / np.log(100))
        lines.append((qod, -fg, x, y, f"{x},{y},{z}\t\t{fg:.1f}\t\t{qod:.1f}\n"))
    out.write_text("".join(line for *_, line in sorted(lines)))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
