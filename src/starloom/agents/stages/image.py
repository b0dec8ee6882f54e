"""Photographs: from a file's bytes to pixels, and the resizing that the vision stages share."""

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from starloom.agents.stage import Empty, Outputs, Stage, StageCall
from starloom.dag import limits
from starloom.dag.constellation import Tier
from starloom.dag.errors import StageError
from starloom.dag.kinds import Cost, KindSpec, Param
from starloom.dag.values import Port, PortType

# An agent runs several stages at once; OpenCV's own pool would give each of them every core.
cv2.setNumThreads(1)

Image = NDArray[np.uint8]
"""uint8 [height, width, 3], RGB."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\xd8\xff"
_JPEG_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE_MARKERS = frozenset([0x01, *range(0xD0, 0xD9)])
_PNG_COLOUR_TYPES_WITH_ALPHA = frozenset([4, 6])
_EXIF_ORIENTATION_TAG = 0x0112
_WHITE = 255


class _Header(NamedTuple):
    """What a file says of itself before its pixels; `orientation` is EXIF's 1 to 8, read only where `alpha`."""

    width: int
    height: int
    jpeg: bool
    alpha: bool = False
    orientation: int = 1


class DecodeImage(Stage):
    """JPEG or PNG bytes to RGB pixels, upright as EXIF says, on white where transparent, 8 bits a channel."""

    spec = KindSpec(
        name="image.decode",
        about="Decodes a JPEG or PNG file to RGB pixels.",
        inputs={"data": Port(PortType.BYTES)},
        outputs={"image": Port(PortType.IMAGE)},
        params={
            "max_side": Param(
                type="integer",
                default=1280,
                about="pixels; an image with a longer side is scaled down to it; 0 keeps it",
            )
        },
        tier=Tier.DEVICE,
        cost=Cost(run_seconds=0.03, memory_bytes=64 * 1024 * 1024),
    )

    def run(self, call: StageCall) -> Outputs:
        max_side = call.params["max_side"]
        if max_side < 0:
            raise StageError(f"image.decode: max_side is {max_side}; give pixels above 0, or 0 to keep the size")
        return {"image": decode_image(bytes(call.inputs["data"]), max_side, call.empty)}


def decode_image(data: bytes, max_side: int = 0, empty: Empty = np.empty) -> Image:
    """The pixels of a JPEG or PNG file: uint8 [height, width, 3], RGB.

    `max_side`, in pixels, bounds the longer side; 0 leaves the size. What is scaled down is written to what `empty` makes. The size that the header
    states is checked before any pixel is decoded. Raises StageError for an empty, foreign, damaged
    or oversized file.
    """
    header = _read_header(data)
    pixels = header.width * header.height
    if pixels > limits.IMAGE_PIXELS_MAX:
        raise StageError(
            f"the image is {header.width} x {header.height} = {pixels} pixels, over IMAGE_PIXELS_MAX = "
            f"{limits.IMAGE_PIXELS_MAX}; scale it down first"
        )
    if pixels == 0:
        raise StageError(f"the image is {header.width} x {header.height} pixels: the file is damaged; send it again")
    return shrink(_on_white(data, header) if header.alpha else _opaque(data, header, max_side), max_side, empty)


def resize(image: Image, width: int, height: int, empty: Empty = np.empty) -> Image:
    """`image` at another size: area averages on the way down, as they keep thin strokes, linear on the way up."""
    if (height, width) == image.shape[:2]:
        return image
    smaller = width * height < image.shape[0] * image.shape[1]
    resized = empty((height, width, *image.shape[2:]), image.dtype)
    cv2.resize(image, (width, height), resized, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    return resized


def shrink(image: Image, max_side: int, empty: Empty = np.empty) -> Image:
    """`image` with its longer side at most `max_side` pixels; 0 keeps it."""
    height, width = image.shape[:2]
    longest = max(height, width)
    if max_side == 0 or longest <= max_side:
        return image
    wanted_width, wanted_height = (max(1, round(side * max_side / longest)) for side in (width, height))
    return resize(image, wanted_width, wanted_height, empty)


def _opaque(data: bytes, header: _Header, max_side: int) -> Image:
    """The colours alone, with EXIF's orientation applied by OpenCV."""
    reduction = 1
    longest = max(header.width, header.height)
    # A JPEG decodes at a half, quarter or eighth for a fraction of the time; stay at or above the size asked for.
    while header.jpeg and 0 < max_side * reduction * 2 <= longest and reduction < 8:
        reduction *= 2
    if reduction == 1:
        return _decode(data, cv2.IMREAD_COLOR_RGB)
    flag = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}[reduction]
    return cast(Image, cv2.cvtColor(_decode(data, flag), cv2.COLOR_BGR2RGB))


def _on_white(data: bytes, header: _Header) -> Image:
    """A PNG with transparency, laid on white. OpenCV leaves the turning to us where it keeps the alpha channel."""
    decoded = _decode(data, cv2.IMREAD_UNCHANGED)
    full = np.iinfo(decoded.dtype).max
    if decoded.ndim != 3 or decoded.shape[2] != 4:
        return _decode(data, cv2.IMREAD_COLOR_RGB)
    alpha = decoded[:, :, 3:].astype(np.float32) / full
    colours = decoded[:, :, 2::-1].astype(np.float32) * (_WHITE / full)
    blended = np.rint(colours * alpha + _WHITE * (1 - alpha)).astype(np.uint8)
    return _upright(blended, header.orientation)


def _upright(image: Image, orientation: int) -> Image:
    """Undoes EXIF's orientation: 2, 4, 5 and 7 are mirrored, 5 to 8 lie on their side."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def _decode(data: bytes, flag: int) -> NDArray[Any]:
    try:
        decoded: NDArray[Any] | None = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error as error:
        raise StageError(f"the image cannot be decoded: {str(error).strip()}") from error
    if decoded is None:
        raise StageError(f"the image of {len(data)} bytes is cut off or damaged; send the whole file again")
    return decoded


def _read_header(data: bytes) -> _Header:
    if not data:
        raise StageError("the image is empty: 0 bytes; send a JPEG or PNG file")
    try:
        if data.startswith(_JPEG_SIGNATURE):
            return _read_jpeg_header(data)
        if data.startswith(_PNG_SIGNATURE):
            return _read_png_header(data)
    except (struct.error, IndexError) as error:
        raise StageError(f"the image of {len(data)} bytes ends inside its header; send the whole file again") from error
    raise StageError(f"the {len(data)} bytes are neither a JPEG nor a PNG file; they begin with {data[:8]!r}")


def _read_jpeg_header(data: bytes) -> _Header:
    """The size in the frame header (ITU-T T.81, B.2.2)."""
    at = 2
    while True:
        if data[at] != 0xFF:
            raise StageError(f"the JPEG file is damaged: no marker at byte {at}; send the whole file again")
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker in _JPEG_FRAME_MARKERS:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return _Header(width, height, jpeg=True)
        at += 2 if marker in _JPEG_BARE_MARKERS else 2 + struct.unpack_from(">H", data, at + 2)[0]


def _read_png_header(data: bytes) -> _Header:
    """The size, and what is needed of the chunks before the pixels (PNG, third edition, 11.2 and 11.3)."""
    width, height, alpha, orientation = 0, 0, False, 1
    for kind, content in _png_chunks(data):
        if kind == b"IHDR":
            width, height, _, colour_type = struct.unpack_from(">IIBB", content)
            alpha = colour_type in _PNG_COLOUR_TYPES_WITH_ALPHA
        elif kind == b"tRNS":
            alpha = True
        elif kind == b"eXIf":
            orientation = _exif_orientation(content)
    return _Header(width, height, jpeg=False, alpha=alpha, orientation=orientation)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(_PNG_SIGNATURE)
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind in (b"IDAT", b"IEND"):
            return
        yield kind, data[at + 8 : at + 8 + length]
        at += 12 + length


def _exif_orientation(tiff: bytes) -> int:
    """Tag 0x0112 of the first directory (TIFF 6.0, section 2); 1, upright, where it is absent or unreadable."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(entries):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * entry)
            if tag == _EXIF_ORIENTATION_TAG and 1 <= value <= 8:
                return int(value)
    except struct.error:
        return 1
    return 1
