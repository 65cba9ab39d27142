"""Stack tile sets with Pillow and numpy alone, as JPEG: `mean_stack.py IMAGES LABELS MASKS OUT`."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image


def main(images: Path, labels: Path, masks: Path, out: Path) -> None:
    for path in sorted(images.glob("*/*/*.jpg")):
        place = path.relative_to(images)
        total = np.asarray(Image.open(path)).astype(np.uint16)
        total += 1  # half of three, rounded down: the mean is rounded half up
        for other in (labels, masks):
            total += np.asarray(Image.open((other / place).with_suffix(".png")).convert("RGB"))
        total //= 3
        target = out / place
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(total.astype(np.uint8)).save(target, quality=85)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
