"""Draw the moving picture of the page to review: `python -m docs.moving PAGE OUT.webp`.

PAGE is any page of `rsp review` that shows imagery and masks. The picture in docs/img is of real tiles, after
`make banepa DATA=...` (which writes banepa/ensemble.pmtiles, masks of the tiles that nothing was learned from):

rsp changes --mapped DATA/buildings.geojson --predicted banepa/ensemble.pmtiles changes.geojson
rsp review --changes changes.geojson --mapped DATA/buildings.geojson --images DATA/images
    --masks banepa/ensemble.pmtiles --embed 30 --title "Banepa, Nepal"
    --attribution "Imagery: OpenAerialMap / HOT, CC-BY 4.0; buildings: OpenStreetMap contributors, ODbL 1.0"
    review.html
python -m docs.moving review.html docs/img/review-moving.webp
"""

from __future__ import annotations

import argparse
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

# Of the page, in pixels, and of the picture.
VIEW = {"width": 1040, "height": 620}
WIDTH = 832
QUALITY = 62
LARGEST = 1_000_000
# Keys that are pressed one after the other, and how long each is shown, in milliseconds. "1" to "9" are where the
# border of the swipe stands, in tenths.
PLAY = (
    ("", 1800), ("a", 1500), ("r", 1500), ("r", 1200), ("s", 400), ("6", 200), ("7", 200), ("8", 200), ("9", 600),
    ("7", 200), ("5", 200), ("3", 200), ("1", 600), ("3", 200), ("5", 300), ("s", 900), ("r", 1500), ("d", 1500),
    ("a", 1500), ("u", 1800),
)  # fmt: skip


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    draw(args.page, args.out)


def draw(page: Path, out: Path) -> None:
    """Review in a browser, by the keys of `PLAY`, and write what is seen as an animated WebP.

    Args:
        page: What `rsp review` wrote.
        out: The picture.

    Raises:
        ValueError: it is too large for a page that people open.
    """
    frames = [frame(picture) for picture in played(page)]
    frames[0].save(
        out, "WEBP", save_all=True, append_images=frames[1:], duration=[each for _, each in PLAY], loop=0,
        quality=QUALITY, method=6, minimize_size=True,
    )  # fmt: skip
    if out.stat().st_size > LARGEST:
        raise ValueError(f"{out} has {out.stat().st_size:,} bytes, more than {LARGEST:,}: lower QUALITY or WIDTH")


def frame(picture: bytes) -> Image.Image:
    """Return a picture of the page as small as it is shown."""
    image = Image.open(BytesIO(picture)).convert("RGB")
    return image.resize((WIDTH, WIDTH * image.height // image.width), Image.Resampling.LANCZOS)


def played(page: Path) -> list[bytes]:
    """Return what is seen after each key, as PNG."""
    from tests.browser import chromium

    seen = []
    with chromium() as browser:
        tab = browser.new_page(viewport=VIEW, color_scheme="light")
        tab.goto(page.resolve().as_uri())
        tab.wait_for_selector("body[data-whole]")
        tab.locator("#layers summary").click()  # the list of layers would cover much of the picture
        for key, _ in PLAY:
            press(tab, key)
            seen.append(tab.screenshot())
    return seen


def press(tab: Any, key: str) -> None:
    """Press a key, or move the border of the swipe, and wait until all is drawn."""
    if key.isdigit():
        tab.evaluate("(at) => placeSwipe(at)", int(key) / 10)
    elif key:
        tab.keyboard.press(key)
    tab.wait_for_function(
        "() => layers.every(({leaflet, shown}) => !shown || !leaflet.isLoading()) "
        "&& [...document.images].every((each) => each.complete)"
    )
    tab.wait_for_timeout(300)


if __name__ == "__main__":
    main()
