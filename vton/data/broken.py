"""What decoding a broken picture raises; apart, so that it can be had without importing torch."""

from __future__ import annotations

import struct
import zlib

from PIL import Image

# Everything Pillow raises on truncated or foreign content; a broken PNG is a SyntaxError to it.
BROKEN = (
    OSError,
    ValueError,
    EOFError,
    SyntaxError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
