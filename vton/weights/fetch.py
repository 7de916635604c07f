"""`vton weights`: the pretrained metric networks, fetched once by whoever is online.

Files land where evaluation looks for them (metric_networks.py). A file is written under a temporary
name in its folder and gets its own only when it is whole and what its authors published, by its
size and SHA-256 or by the eight digits of that in its name. Where neither is known, the first fetch
is trusted: its digest is kept beside the file, as `<file>.sha256`, and checked from then on.
"""

from __future__ import annotations

import http.client
import shutil
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import wrap_file

from vton.config import ConfigError, nearest
from vton.errors import UserError
from vton.files import file_digest, replacing, write_atomically
from vton.weights.metric_networks import (
    CLIP,
    FILES,
    IMAGE_REWARD,
    VARIABLE,
    VISION,
    VTON_IQA,
    digits_in_name,
)
from vton.weights.unreadable import mistaken

TIMEOUT = 60  # seconds without a byte
PYTORCH = "https://download.pytorch.org/models/"
ZOZO = "https://research.zozo.com/data_release/vtoniqa/vtoniqa/"
PYTORCH_FID = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"


@dataclass(frozen=True)
class PublishedFile:
    """One published file and what is known of it."""

    url: str
    path: str  # below the folder of metric networks
    # "" = not known: checked by the digits in its name, else trusted on first fetch
    sha256: str = ""
    size: int | None = None  # bytes; None = not known

    @property
    def known(self) -> str:
        """The digest, the eight digits of it in the file's name, or ""."""
        return self.sha256 or digits_in_name(Path(self.path))


def _named_by_digest(
    network: str, site: str, sha256: str = "", size: int | None = None
) -> tuple[PublishedFile, ...]:
    """The file of a network whose name ends in eight digits of its SHA-256."""
    name = FILES[network][0]
    return (PublishedFile(site + name, name, sha256, size),)


def _of_hub(
    repository: str, commit: str, folder: str, files: Mapping[str, str]
) -> tuple[PublishedFile, ...]:
    """Files of a Hugging Face repository as of one commit, name -> SHA-256."""
    site = f"https://huggingface.co/{repository}/resolve/{commit}/"
    published = []
    for name, sha256 in files.items():
        published.append(PublishedFile(site + name, f"{folder}/{name}", sha256))
    return tuple(published)


# The digests continue the eight digits in the files' names; several projects pin the same ones.
SOURCES: dict[str, tuple[PublishedFile, ...]] = {
    "inception": _named_by_digest(
        "inception",
        PYTORCH_FID,
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        95_628_359,
    ),
    "alex": _named_by_digest(
        "alex",
        PYTORCH,
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        244_408_911,
    ),
    "vgg": _named_by_digest(
        "vgg",
        PYTORCH,
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        553_433_881,
    ),
    "squeeze": _named_by_digest(
        "squeeze", PYTORCH, "b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b"
    ),
    "vgg19": _named_by_digest("vgg19", PYTORCH),
    "clip": _of_hub(
        "openai/clip-vit-base-patch32",
        "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
        CLIP,
        {
            "pytorch_model.bin": "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
            "config.json": "",
            "preprocessor_config.json": "",
            "tokenizer_config.json": "",
            "vocab.json": "",
            "merges.txt": "",
        },
    ),
    "image_reward": (
        *_of_hub(
            "THUDM/ImageReward",
            "5736be03b2652728fb87788c9797b0570450ab72",
            IMAGE_REWARD,
            {"ImageReward.pt": "", "med_config.json": ""},
        ),
        *_of_hub(
            "google-bert/bert-base-uncased",
            "86b5e0934494bd15c9632b12f734a8a67f723594",
            IMAGE_REWARD,
            {"vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"},
        ),
    ),
    # No commit of these is known here: what is fetched first is trusted.
    "dinov2": _of_hub(
        "facebook/dinov2-large",
        "main",
        VISION["dinov2"],
        {"config.json": "", "model.safetensors": ""},
    ),
    "clip_l336": _of_hub(
        "openai/clip-vit-large-patch14-336",
        "main",
        VISION["clip"],
        {"config.json": "", "pytorch_model.bin": ""},
    ),
    "vton_iqa": (
        PublishedFile(f"{ZOZO}config.json", f"{VTON_IQA}/config.json"),
        PublishedFile(f"{ZOZO}model.safetensors", f"{VTON_IQA}/model.safetensors"),
    ),
}
USUAL = ("inception", "alex", "vgg", "squeeze")  # those of every evaluation


def fetch(
    names: Sequence[str], folder: Path, sources: Mapping[str, Sequence[PublishedFile]] = SOURCES
) -> Iterator[tuple[Path, str]]:
    """Bring the named networks into the folder; yields each file with what was done.

    Files that are there are checked again. Raises ConfigError for an unknown name, UserError
    naming the file that cannot be fetched or is not the published one.
    """
    for name in names:
        if name not in sources:
            raise ConfigError(f"{name}: no such metric network. {nearest(name, list(sources))}")
    for name in names:
        for source in sources[name]:
            path = folder / source.path
            yield path, _bring(source, path)


def _bring(source: PublishedFile, path: Path) -> str:
    """Fetch and check one file, or check it if it is there; returns what was done."""
    if path.is_file():
        check(path, path, source)
        return "present, checked"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        download(source, path, partial)
        check(partial, path, source)
    if source.known:
        return "fetched, checked"
    return f"fetched, trusted: digest kept in {_pin(path).name}"


def download(source: PublishedFile, path: Path, partial: Path) -> None:
    """Fetch the file that is meant for `path` to `partial`; raise UserError unless it is whole.

    Python's urllib does not notice a cut connection when a file is read in pieces, so what arrived
    is compared with what the server announced. If it announces nothing, a digest must be known.
    """
    try:
        with (
            urllib.request.urlopen(source.url, timeout=TIMEOUT) as response,
            open(partial, "wb") as file,
        ):
            length = response.headers.get("Content-Length")
            announced = None if length is None else int(length)
            chunked = getattr(response, "chunked", False)  # then a cut is noticed
            if announced is None and not source.known and not chunked:
                raise http.client.HTTPException(
                    "the server does not say how long it is, so a cut would go unnoticed"
                )
            total = source.size or announced or 0
            with wrap_file(response, total, description=path.name) as stream:
                shutil.copyfileobj(stream, file, 1 << 20)
            if announced is not None and file.tell() != announced:
                raise http.client.HTTPException(
                    f"the connection ended after {file.tell():,} of {announced:,} bytes"
                )
    except (OSError, http.client.HTTPException) as error:  # no network, a timeout, a full disk, ...
        reason = getattr(error, "reason", error)
        raise UserError(
            f"cannot fetch {source.url}: {reason}. Offline, copy the file to {path} yourself, "
            f"or set {VARIABLE} to a folder that holds it."
        ) from None


def check(file: Path, path: Path, source: PublishedFile) -> None:
    """Raise UserError unless `file`, meant for `path`, is the published one.

    A digest that is not known yet is kept for the next time.
    """
    if file == path:
        advice = "Remove it and run `make weights` again."
    else:
        advice = "Nothing was kept; run `make weights` again."
    size = file.stat().st_size
    if source.size is not None and size != source.size:
        raise UserError(
            f"{path}: {size:,} bytes, expected {source.size:,} ({source.url}). {advice}"
        )
    wrong = mistaken(file)
    if wrong:
        raise UserError(f"{path}: {wrong} ({source.url}). {advice}")
    digest = file_digest(file)
    pin = _pin(path)
    if not source.known and not pin.is_file():
        write_atomically(pin, digest + "\n")
    expected = source.known or pin.read_text().strip()
    if not expected or not digest.startswith(expected):
        raise UserError(f"{path}: SHA-256 {digest}, expected {expected} ({source.url}). {advice}")


def _pin(path: Path) -> Path:
    """Where the digest of a file trusted on its first fetch is kept."""
    return path.with_name(path.name + ".sha256")
