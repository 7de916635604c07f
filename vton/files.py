"""Files that are written whole or not at all, and their digests."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from vton.errors import UserError

LONGEST_NAME = 200  # bytes, of names to which something is added


def write_atomically(path: Path, text: str) -> None:
    """A reader sees the former text or this one, never half of it. Raises UserError."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; what the block writes there takes its place at the end.

    Whenever the process dies, `path` is what it was before or the new file, whole and synced.
    Raises UserError, naming the path and the free space on its disk, if writing fails.
    """
    name = path.name
    if len(os.fsencode(name)) > LONGEST_NAME:  # disks take 255 bytes
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    temporary = path.with_name(f".{name}.{os.getpid()}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)  # the rename itself
    # For a full disk torch has RuntimeErrors and safetensors its own.
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        free = shutil.disk_usage(path.parent).free / 2**20
        raise UserError(
            f"{path} could not be written ({reason}; {free:,.0f} MiB free there). "
            "What it held before is intact. Make room, then run the same command again."
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """Make the folder of a file that is written only after long work.

    Raises UserError naming the path if it is a folder, or if no file can be written there.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder. Name a file in it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror} ({error.filename}).") from None
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path} cannot be written: no permission to write in {path.parent}.")


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, read a piece at a time."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
