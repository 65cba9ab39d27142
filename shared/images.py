"""Tile images: decode and encode PNG, JPEG, WebP and GeoTIFF; masks, and the palettes that colour them."""

from __future__ import annotations

import colorsys
import io
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, UnidentifiedImageError

from rsp.shared.errors import ConfigError, TileError
from rsp.shared.indexed import read_indexed
from rsp.shared.png import depth_of, encode_rows, encode_values, pack

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.uint8]
Rgb = tuple[int, int, int]

# Larger than any tile; a stranger's image that claims more is refused before it is decoded.
MAX_PIXELS = 4096 * 4096
MAX_PIXEL_BYTES = 16  # a TIFF may hold more in a pixel, and then fewer pixels

# What the values of imagery can be, by the name of numpy; all floats count as float32.
VALUE_TYPES = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float32")

LOSSY_QUALITY = 85
_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Array:
    """Decode a tile image, its format told by content.

    Args:
        data: An encoded PNG, JPEG, WebP or (Geo)TIFF.
        max_pixels: Refuse images of more pixels than this.

    Returns:
        Array of shape (height, width, bands): uint8 for PNG, JPEG and WebP (colours in the order R, G, B, an
        alpha channel dropped, a palette resolved, 16-bit PNG kept as uint16), any type for TIFF.

    Raises:
        TileError: empty, corrupt, truncated, of another format, or too large.
    """
    if data[:4] in _TIFF:
        return _decode_tiff(data, max_pixels)
    indexed = read_indexed(data, max_pixels)
    if indexed is not None and indexed.colored:
        image = Image.fromarray(indexed.indices)
        image.putpalette(indexed.palette)
        return np.asarray(image.convert("RGB"))
    return _as_array(open_picture(data, max_pixels))


def _as_array(image: Image.Image) -> Array:
    if image.mode not in ("L", "RGB", "I", "I;16"):
        image = image.convert({"LA": "L", "La": "L", "1": "L"}.get(image.mode, "RGB"))
    array = np.asarray(image)
    if array.dtype == np.int32:  # Pillow's mode I: 16-bit greys in wider integers
        array = array.astype(np.uint16)
    return array if array.ndim == 3 else array[:, :, np.newaxis]


def padded(data: bytes, to_rgb: Callable[[Array], Array], max_pixels: int = MAX_PIXELS) -> Array:
    """Decode a tile image to look at, with a fourth band of no meaning.

    Pillow has its pixels so, and four bytes are quicker to reckon with than three. `encode_padded` writes it.

    Args:
        data: See `decode`, as for the limit and the errors.
        to_rgb: Makes colours of what has not three bands of uint8.
        max_pixels: The same.

    Returns:
        Shape (height, width, 4), uint8.
    """
    if data[:4] in _TIFF:
        image = Image.fromarray(to_rgb(_decode_tiff(data, max_pixels)))
    else:
        image = open_picture(data, max_pixels)
        if image.mode != "RGB":
            image = Image.fromarray(to_rgb(_as_array(image)))
    return np.frombuffer(image.tobytes("raw", "RGBX"), np.uint8).reshape(image.height, image.width, 4)


def value_type(image: Array) -> str:
    """Return which of `VALUE_TYPES` the values of an image are; raise `TileError` for any other (complex ones)."""
    name = "float32" if np.issubdtype(image.dtype, np.floating) else str(image.dtype)
    if name not in VALUE_TYPES:
        raise TileError(f"the values of the image are {image.dtype}; expected one of {', '.join(VALUE_TYPES)}")
    return name


def natural_divisor(dtype: npt.DTypeLike) -> float:
    """Return what values of a type are divided by where nothing else is said: integers by their largest."""
    return float(np.iinfo(dtype).max) if np.issubdtype(dtype, np.integer) else 1.0


def sniff(data: bytes) -> str | None:
    """Return the format of an encoded image, told by its first bytes: png, jpg, webp, tif, or None."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return "tif" if data[:4] in _TIFF else None


def decode_mask(data: bytes, max_pixels: int = MAX_PIXELS) -> Mask:
    """Decode a label or mask: one band whose values are class indices (a palette is not applied).

    WebP has no single band: there a mask is grey, as `encode_mask_webp` writes it.

    Returns:
        Array of shape (height, width), uint8.

    Raises:
        TileError: as `decode`, or more than one band.
    """
    if data[:4] in _TIFF:
        array = _decode_tiff(data, max_pixels)
        if array.shape[2] != 1:
            raise TileError(f"a mask has one band, this image has {array.shape[2]}")
        mask = array[:, :, 0].astype(np.uint8)
        if array.dtype != np.uint8 and not np.array_equal(mask, array[:, :, 0]):
            raise TileError("a mask holds class indices, whole numbers from 0 to 255")
        return mask
    indexed = read_indexed(data, max_pixels)
    if indexed is not None:
        return indexed.indices
    image = open_picture(data, max_pixels)
    if image.format == "WEBP" and image.mode == "RGB":
        array = np.asarray(image)
        if (array == array[:, :, :1]).all():
            return np.ascontiguousarray(array[:, :, 0])
    if image.mode not in ("P", "L", "1"):
        raise TileError(f"a mask is a single-band image of class indices, this one is {image.mode}")
    return np.asarray(image, dtype=np.uint8)  # a 1-bit image holds the classes 0 and 1


def open_picture(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open and load a PNG, JPEG or WebP with Pillow.

    Raises:
        TileError: as `decode`, with reasons that say nothing of our insides.
    """
    if not data:
        raise TileError("the image is empty")
    try:
        _ignore(Image.DecompressionBombWarning)  # max_pixels is the stricter check
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
        if image.width * image.height > max_pixels:
            raise TileError(f"the image has {image.width}x{image.height} pixels, the limit is {max_pixels}")
        image.load()
    except UnidentifiedImageError:
        raise TileError("not an image (expected PNG, JPEG, WebP or GeoTIFF)") from None
    except Image.DecompressionBombError:
        raise TileError(f"the image claims far more pixels than the limit of {max_pixels}") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise TileError("the image is corrupt or truncated") from error
    except (ArithmeticError, LookupError, TypeError, struct.error, zlib.error) as error:
        # What Pillow's readers let through on damaged files.
        raise TileError("the image is corrupt") from error
    return image


def _ignore(category: type[Warning]) -> None:
    """Let a library not warn of what is so with every tile, in this process.

    Not by `catch_warnings`: it is not for threads, which would put back each other's filters.
    """
    if ("ignore", None, category, None, 0) not in warnings.filters:
        warnings.simplefilter("ignore", category)


def _decode_tiff(data: bytes, max_pixels: int) -> Array:
    """Decode a TIFF of any number of bands and any type with GDAL."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    _ignore(NotGeoreferencedWarning)
    try:
        with rasterio.MemoryFile(data) as memory, memory.open(driver="GTiff") as raster:
            size = raster.width * raster.height * sum(np.dtype(kind).itemsize for kind in raster.dtypes)
            if raster.width * raster.height > max_pixels or size > max_pixels * MAX_PIXEL_BYTES:
                raise TileError(
                    f"the image has {raster.width}x{raster.height} pixels of {raster.count} bands, the limit "
                    f"is {max_pixels} pixels and {max_pixels * MAX_PIXEL_BYTES} bytes"
                )
            return np.moveaxis(raster.read(), 0, 2)
    except (RasterioError, ValueError, TypeError) as error:
        raise TileError("the TIFF is corrupt or truncated") from error


def encode(image: Array, tile_format: str, *, quality: int | None = None) -> bytes:
    """Encode an image.

    Args:
        image: Shape (height, width, bands). PNG takes 1 or 3 bands of uint8 (or 1 of uint16), JPEG and WebP 1
            or 3 of uint8, TIFF anything.
        tile_format: png, jpg, webp or tif.
        quality: Of JPEG and WebP, 1 to 100; None for `LOSSY_QUALITY`.

    Raises:
        TileError: the format cannot hold these bands or this type (TIFF can).
    """
    if tile_format == "tif":
        return _encode_tiff(image)
    if tile_format not in ("png", "jpg", "webp"):
        raise TileError(f"unknown tile format {tile_format!r}; expected png, jpg, webp or tif")
    bands = image.shape[2]
    wide = image.dtype == np.uint16 and bands == 1 and tile_format == "png"
    if bands not in (1, 3) or not (image.dtype == np.uint8 or wide):
        raise TileError(f"{tile_format} cannot hold {bands} bands of {image.dtype}; use --format tif")
    if tile_format == "png" and bands == 1:
        return encode_values(image)
    picture = Image.fromarray(image[:, :, 0]) if bands == 1 else _picture(image)
    if tile_format == "png":
        return encode_values(np.asarray(picture))
    if tile_format == "webp" and bands == 1:
        picture = picture.convert("RGB")
    buffer = io.BytesIO()
    if tile_format == "jpg":
        picture.save(buffer, "JPEG", quality=quality or LOSSY_QUALITY)
    else:
        picture.save(buffer, "WEBP", quality=quality or LOSSY_QUALITY)
    return buffer.getvalue()


def _picture(image: Array) -> Image.Image:
    """Return an image of three bands, which lie in memory one after another (as GDAL has them) or side by side."""
    planes = [image[:, :, band] for band in range(3)]
    if planes[0].flags.c_contiguous:  # a tenth of what a copy costs that puts them side by side
        return Image.merge("RGB", [Image.fromarray(plane) for plane in planes])
    return Image.fromarray(np.ascontiguousarray(image))


def encode_padded(image: Array, tile_format: str) -> bytes:
    """Encode an image of `padded`, without its fourth band, as `encode` does."""
    if tile_format != "jpg":
        return encode(image[:, :, :3], tile_format)
    buffer = io.BytesIO()
    size = image.shape[1], image.shape[0]
    Image.frombuffer("RGBX", size, image, "raw", "RGBX", 0, 1).save(buffer, "JPEG", quality=LOSSY_QUALITY)
    return buffer.getvalue()


def encode_lossless(image: Array, *, near: bool = False) -> bytes:
    """Encode an image without loss, as is quickest for who sends and who receives it.

    Args:
        image: Shape (height, width, bands), of any type that a TIFF holds.
        near: Bytes cost nothing between the two: then it is a TIFF that is not compressed, which takes a tenth of
            the CPU time of a PNG, both ways. Else it is a WebP, a PNG or a TIFF, whichever holds its bands.

    Raises:
        TileError: a TIFF cannot hold it.
    """
    if near:
        return _encode_tiff(image, compress=None, interleave="band", blockysize=image.shape[0])
    if image.shape[2] == 3 and image.dtype == np.uint8:
        return _lossless_webp(image)  # a third smaller than a PNG of level 1, in half of the time
    bands, kind = image.shape[2], image.dtype
    return encode(image, "png" if bands == 1 and kind in (np.uint8, np.uint16) else "tif")


def _lossless_webp(image: Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "WEBP", lossless=True, quality=0, method=0)
    return buffer.getvalue()


def _encode_tiff(image: Array, **options: Any) -> bytes:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    height, width, bands = image.shape
    _ignore(NotGeoreferencedWarning)
    try:
        with rasterio.MemoryFile() as memory:
            with memory.open(
                driver="GTiff",
                width=width,
                height=height,
                count=bands,
                dtype=image.dtype,
                **({"compress": "deflate"} | options),
            ) as raster:
                raster.write(np.moveaxis(image, 2, 0))
            return bytes(memory.read())
    except (RasterioError, TypeError, ValueError) as error:
        raise TileError(f"tif cannot hold {bands} bands of {image.dtype}: {error}") from error


def encode_mask(mask: Mask, colors: Sequence[Rgb]) -> bytes:
    """Encode class indices as a paletted single-band PNG, of as few bits a pixel as the palette needs.

    Args:
        mask: Shape (height, width), uint8, every value below the number of colours.
        colors: One colour a class.
    """
    if mask.dtype != np.uint8 or mask.ndim != 2:
        raise TypeError(f"a mask is a 2-D array of uint8, got {mask.ndim}-D {mask.dtype}")
    if mask.size and int(mask.max()) >= len(colors):
        raise TileError(f"the mask holds class {int(mask.max())}, the palette has {len(colors)} colours")
    depth = depth_of(len(colors))
    return encode_rows(pack(mask, depth), mask.shape[1], depth, colors)


def encode_mask_tiff(mask: Mask, colors: Sequence[Rgb]) -> bytes:
    """Encode class indices as a paletted TIFF; else as `encode_mask`. What the palette lacks of 256 is black."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    height, width = mask.shape
    _ignore(NotGeoreferencedWarning)
    with rasterio.MemoryFile() as memory:
        with memory.open(
            driver="GTiff", width=width, height=height, count=1, dtype=np.uint8, compress="deflate",
            photometric="palette",
        ) as raster:  # fmt: skip
            raster.write(mask, 1)
            raster.write_colormap(1, {number: (*color, 255) for number, color in enumerate(colors)})
        return bytes(memory.read())


def palette_of(data: bytes) -> list[Rgb]:
    """Return the palette of an encoded image, empty where it has none; raise `TileError` where it is corrupt."""
    if data[:4] in _TIFF:
        return _tiff_palette(data)
    picture = open_picture(data) if sniff(data) == "png" else None
    values = (picture.getpalette("RGB") if picture and picture.mode == "P" else None) or []
    return list(zip(values[::3], values[1::3], values[2::3], strict=True))


def _tiff_palette(data: bytes) -> list[Rgb]:
    import rasterio
    from rasterio.enums import ColorInterp
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    _ignore(NotGeoreferencedWarning)
    try:
        with rasterio.MemoryFile(data) as memory, memory.open(driver="GTiff") as raster:
            if raster.count != 1 or raster.colorinterp[0] != ColorInterp.palette:
                return []
            found = raster.colormap(1)
    except (RasterioError, ValueError) as error:
        raise TileError("the TIFF is corrupt or truncated") from error
    return [found.get(entry, (0, 0, 0))[:3] for entry in range(256)]


def encode_mask_webp(mask: Mask) -> bytes:
    """Encode class indices as a lossless grey WebP, in which a pixel's red, green and blue are its class index.

    It has no palette: what shows it looks colours up. `decode_mask` reads it.

    Args:
        mask: Shape (height, width), uint8.
    """
    return _lossless_webp(np.repeat(mask[:, :, np.newaxis], 3, axis=2))


def parse_color(color: str) -> Rgb:
    """Return the colour of a CSS3 name or of `#RRGGBB`; raise `ConfigError` where it is neither."""
    try:
        red, green, blue = ImageColor.getrgb(color)[:3]
    except ValueError:
        raise ConfigError(f"{color!r} is not a colour; expected a CSS3 name, as `deeppink`, or #RRGGBB") from None
    return red, green, blue


def complementary(colors: Sequence[Rgb]) -> list[Rgb]:
    """Turn the hue of each colour by 180 degrees (greys stay): the palette that labels wear.

    Stacked upon a mask in the plain palette, agreement is grey, a mask alone shows the plain colour, and a label
    alone its complement.
    """
    turned = []
    for color in colors:
        hue, lightness, saturation = colorsys.rgb_to_hls(*(value / 255 for value in color))
        red, green, blue = colorsys.hls_to_rgb((hue + 0.5) % 1.0, lightness, saturation)
        turned.append((round(red * 255), round(green * 255), round(blue * 255)))
    return turned
