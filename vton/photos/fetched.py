"""Weights that may not be fetched yet: asked for by name."""

from __future__ import annotations

from pathlib import Path

from vton.errors import UserError
from vton.files import file_digest
from vton.weights.photo_networks import VARIABLE, fetched_folder

FETCH = "vton weights photo"  # the command that brings them


def weights_file(name: str, where: str, purpose: str, sha256: str) -> Path:
    """A file of a folder, by default of that which `vton weights photo` fills.

    Raises UserError with the command that fetches it where it is missing, and for a file that is
    not the published one.
    """
    path = (Path(where).expanduser() if where else fetched_folder()) / name
    if not path.is_file():
        raise UserError(
            f"{purpose} needs {path}, which is not there. Fetch it with `{FETCH}`, or set "
            f"{VARIABLE} to a folder that holds it."
        )
    digest = file_digest(path)
    if digest != sha256:
        raise UserError(
            f"{path} is not the published file: SHA-256 {digest[:16]}..., expected "
            f"{sha256[:16]}.... Remove it and run `{FETCH}`."
        )
    return path
