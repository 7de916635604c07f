"""What a file is that cannot be read as weights, in words that a user can act on."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from vton.errors import one_line

LFS_POINTER = b"version https://git-lfs"
WEB_PAGE = re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE)
# In torch's messages: a class or function that a pickle refers to.
REFUSED = re.compile(r"Unsupported global: GLOBAL (\S+)")
UNPICKLER = "WeightsUnpickler error: "


def mistaken(path: Path) -> str:
    """What the file is instead of weights or settings; "" if it may be one, or cannot be read."""
    try:
        with open(path, "rb") as file:
            start = file.read(256)
    except OSError:
        return ""
    if not start:
        return "it is empty"
    if start.startswith(LFS_POINTER):
        return "it is a Git LFS pointer to the file: run `git lfs pull` in its repository"
    if WEB_PAGE.match(start):
        return "it is a web page, such as a hub's login or error page: fetch the file itself"
    return ""


def unreadable(path: Path) -> str:
    """Why a file of weights or settings cannot be read, as far as its first bytes show; "" if they
    are sound.
    """
    if not path.is_file():
        return "it is not there"
    if path.suffix != ".safetensors" or mistaken(path):
        return mistaken(path)
    try:
        with safe_open(path, framework="pt"):
            return ""
    except (SafetensorError, OSError) as error:
        return f"it is cut off or no safetensors file ({one_line(error)})"


def refusal(error: Exception) -> str:
    """Why torch refused a file, without its advice to load it unsafely."""
    found = REFUSED.search(str(error))
    if found:
        return (
            f"it holds a {found[1]}, and only tensors, numbers and strings are read: if you trust "
            "the file, save its tensors alone"
        )
    _, from_unpickler, reason = str(error).rpartition(UNPICKLER)
    if not from_unpickler:
        return one_line(error)
    first_line, _, _ = reason.partition("\n")
    return one_line(ValueError(first_line))
