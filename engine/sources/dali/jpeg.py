"""A JPEG's header and end, read without decoding: what a batch of one size needs to know, on any device."""

from __future__ import annotations

from ....errors import InputError

_START, _END = b"\xff\xd8", b"\xff\xd9"
_SCAN = 0xDA
# SOF0 to SOF15, but DHT, JPG and DAC, whose codes lie among them.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BASELINE_AND_PROGRESSIVE = frozenset({0xC0, 0xC1, 0xC2})


def is_jpeg(start: bytes) -> bool:
    """Whether a file that begins with these bytes (3 or more) is a JPEG."""
    return start.startswith(b"\xff\xd8\xff")


def jpeg_size(data: bytes) -> tuple[int, int]:
    """(H, W) of a whole JPEG, from its first frame header (ITU-T T.81, B.2).

    Raises InputError for what is no JPEG, is cut, or is of a kind that GPUs and libjpeg-turbo do not all decode to the
    same pixels: lossless, arithmetic-coded, of other than 8 bits, or of other than 1 or 3 components.
    """
    if not is_jpeg(data):
        raise InputError(f"not a JPEG: {len(data)} bytes that begin with {data[:4].hex(' ') or 'nothing'}")
    at, size = len(_START), None
    while True:
        while data[at : at + 2] == b"\xff\xff":  # fill bytes before a marker
            at += 1
        if at + 4 > len(data):
            raise InputError(f"cut JPEG: its {len(data)} bytes end before the picture begins")
        if data[at] != 0xFF:
            raise InputError(f"damaged JPEG: no marker at byte {at}")
        code, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if code in _FRAMES and size is None:
            size = _frame_size(code, data[at + 4 : at + 2 + length])
        if code == _SCAN:
            break
        at += 2 + length
    if size is None:
        raise InputError("damaged JPEG: a scan before any frame header")
    # libjpeg fills a cut picture with grey, and so may a GPU: the end is looked for here. Within coded data FF D9 is
    # nothing else.
    if data.rfind(_END) < at:
        raise InputError(f"cut JPEG: its {len(data)} bytes have no end-of-image marker")
    return size


def _frame_size(code: int, fields: bytes) -> tuple[int, int]:
    if len(fields) < 6:
        raise InputError("damaged JPEG: a frame header that is too short")
    bits, components = fields[0], fields[5]
    height, width = int.from_bytes(fields[1:3], "big"), int.from_bytes(fields[3:5], "big")
    if code not in _BASELINE_AND_PROGRESSIVE:
        raise InputError(f"a JPEG of process SOF{code - 0xC0}, expected baseline or progressive (SOF0 to SOF2)")
    if bits != 8 or components not in {1, 3}:
        raise InputError(f"a JPEG of {bits} bits and {components} components, expected 8 bits and 1 or 3")
    if height == 0 or width == 0:
        raise InputError(f"a JPEG of {height}x{width} pixels")
    return height, width
