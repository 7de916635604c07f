"""`vton weights`: the pretrained metric networks, fetched once by whoever is online, checked by size and SHA-256.

Files land where evaluation looks for them (weights.py). A file is written under a temporary name in its folder and gets
its own only when it is what its authors published. Where they name no digest, the first fetch is trusted: its digest is
kept beside the file, as `<file>.sha256`, and checked from then on.
"""

from __future__ import annotations

import hashlib
import shutil
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import wrap_file

from vton.config import ConfigError, nearest
from vton.metrics.weights import CLIP, FILES, IMAGE_REWARD, VARIABLE
from vton.models.pretrained import WeightsError

TIMEOUT = 60  # seconds without a byte
HUB = "https://huggingface.co/{}/resolve/main/"


@dataclass(frozen=True)
class Source:
    """One published file and what is known of it."""

    url: str
    path: str  # below the folder of metric networks
    sha256: str = ""  # "" = its authors name none: trusted on first fetch
    size: int | None = None  # bytes; None = not known


def _of_hub(repository: str, folder: str, *names: str) -> tuple[Source, ...]:
    return tuple(Source(HUB.format(repository) + name, f"{folder}/{name}") for name in names)


# The digests continue the eight digits in the files' names; several projects pin the same ones.
SOURCES: dict[str, tuple[Source, ...]] = {
    "inception": (
        Source(
            "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/" + FILES["inception"][0],
            FILES["inception"][0],
            "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
            95_628_359,
        ),
    ),
    "alex": (
        Source(
            "https://download.pytorch.org/models/" + FILES["alex"][0],
            FILES["alex"][0],
            "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
            244_408_911,
        ),
    ),
    "vgg": (
        Source(
            "https://download.pytorch.org/models/" + FILES["vgg"][0],
            FILES["vgg"][0],
            "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
            553_433_881,
        ),
    ),
    "squeeze": (
        Source(
            "https://download.pytorch.org/models/" + FILES["squeeze"][0],
            FILES["squeeze"][0],
            "b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b",
        ),
    ),
    "vgg19": (Source("https://download.pytorch.org/models/" + FILES["vgg19"][0], FILES["vgg19"][0]),),
    "clip": _of_hub(
        "openai/clip-vit-base-patch32", CLIP,
        "config.json", "pytorch_model.bin", "preprocessor_config.json", "tokenizer_config.json", "vocab.json",
        "merges.txt",
    ),
    "image_reward": (
        *_of_hub("THUDM/ImageReward", IMAGE_REWARD, "ImageReward.pt", "med_config.json"),
        *_of_hub("google-bert/bert-base-uncased", IMAGE_REWARD, "vocab.txt"),
    ),
}  # fmt: skip
USUAL = ("inception", "alex", "vgg", "squeeze")  # those of every evaluation


def fetch(
    names: Sequence[str], folder: Path, sources: Mapping[str, Sequence[Source]] = SOURCES
) -> Iterator[tuple[Path, str]]:
    """Bring the named networks into the folder; yields each file with what was done. Present files are checked again.

    Raises ConfigError for an unknown name, WeightsError naming the file that cannot be fetched or is not the published
    one.
    """
    for name in names:
        if name not in sources:
            raise ConfigError(f"{name}: no such metric network. {nearest(name, list(sources))}")
    for source in (source for name in names for source in sources[name]):
        path = folder / source.path
        if path.is_file():
            _check(path, path, source)
            yield path, "present, checked"
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".part")
        try:
            _download(source, partial)
            _check(partial, path, source)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        yield path, "fetched, checked" if source.sha256 else f"fetched, trusted: digest kept in {_lock(path).name}"


def _download(source: Source, partial: Path) -> None:
    try:
        with urllib.request.urlopen(source.url, timeout=TIMEOUT) as response, open(partial, "wb") as file:
            length = source.size or int(response.headers.get("Content-Length") or 0)
            with wrap_file(response, length, description=partial.stem) as stream:
                shutil.copyfileobj(stream, file, 1 << 20)
    except OSError as error:  # URLError, timeouts, connection resets, and a full disk
        raise WeightsError(
            f"cannot fetch {source.url}: {getattr(error, 'reason', error)}. Offline, copy the file to "
            f"{partial.with_suffix('')} yourself, or set {VARIABLE} to a folder that holds it."
        ) from None


def _check(found: Path, path: Path, source: Source) -> None:
    """Raise WeightsError unless `found`, meant for `path`, is the published file; keep a digest not known yet."""
    advice = (
        "Remove it and run `make weights` again." if found == path else "Nothing was kept; run `make weights` again."
    )
    size = found.stat().st_size
    if source.size is not None and size != source.size:
        raise WeightsError(f"{path}: {size:,} bytes, expected {source.size:,} ({source.url}). {advice}")
    with open(found, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    lock = _lock(path)
    expected = source.sha256 or (lock.read_text().strip() if lock.is_file() else digest)
    if digest != expected:
        raise WeightsError(f"{path}: SHA-256 {digest}, expected {expected} ({source.url}). {advice}")
    if not source.sha256:
        lock.write_text(digest + "\n")


def _lock(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
