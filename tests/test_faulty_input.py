"""What real folders, settings, checkpoints and pictures have wrong with them: each works as
documented, or is refused in one line that names it. Nothing is replaced in silence.

Each table says what is done to something sound, and what follows: a check of the result, or words
of the refusal.
"""

from __future__ import annotations

import builtins
import functools
import io
import json
import math
import os
import re
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.batches import tiny_module
from tests.data.folders import JOINTS as JOINT_PLACES
from tests.data.folders import (
    TO_DRESSCODE,
    body_25,
    coco_18,
    config,
    figure,
    save,
    write_dresscode,
    write_json,
    write_viton_hd,
)
from vton import registry
from vton.cli import main
from vton.commands.train import read_progress
from vton.config import CodecConfig, ConfigError, flatten, load
from vton.config import load_file as load_settings
from vton.config.bounds import check_bounds
from vton.data import labels
from vton.data.check import check_folder, require_clean
from vton.data.dataset import TryOnDataset, open_folder
from vton.data.decoding import EXIF_ORIENTATION
from vton.data.sample import DataError, TryOnSample
from vton.errors import UserError
from vton.models.codecs import KLCodec, load_codec, small_autoencoder
from vton.runs.assemble import load_module
from vton.runs.folder import RunFolder

Harm = Callable[[Path, pytest.MonkeyPatch], object]
# A check of the sample that was read against the sound one.
Works = Callable[[TryOnSample, TryOnSample], object]

# ---- what can be wrong with a file ----


def emptied(path: Path, _) -> None:
    path.write_bytes(b"")


def cut(path: Path, _) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def absent(path: Path, _) -> None:
    path.unlink()


def folder_instead(path: Path, _) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def file_instead(path: Path, _) -> None:
    shutil.rmtree(path)
    path.write_text("a note")


def link_to_nowhere(path: Path, _) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to("/a disk that is not mounted")


def forbidden(path: Path, patch: pytest.MonkeyPatch) -> None:
    """No permission to read, for root as well, whom the file system would let."""
    whole, listed = builtins.open, Path.iterdir

    def refuse(file) -> None:
        if str(file) == str(path):
            raise PermissionError(13, "Permission denied", str(file))

    patch.setattr(
        builtins, "open", lambda file, *args, **kwargs: refuse(file) or whole(file, *args, **kwargs)
    )
    patch.setattr(io, "open", builtins.open)
    patch.setattr(Path, "iterdir", lambda folder: refuse(folder) or listed(folder))


def written(content: str | bytes) -> Harm:
    return lambda path, _: path.write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )


def holding(content) -> Harm:
    return lambda path, _: write_json(path, content)


def saved(change: Callable[[Image.Image], Image.Image], **options) -> Harm:
    """The picture, changed, in the same place."""

    def harm(path: Path, _) -> None:
        with Image.open(path) as image:
            changed = change(image)
        changed.save(path, **options)

    return harm


def lying(path: Path, _) -> None:
    """As cameras store it: on its side, with an EXIF note to turn it back."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6  # turned by 90 degrees clockwise when shown
    saved(lambda image: image.transpose(Image.Transpose.ROTATE_90), exif=exif, quality=95)(
        path, None
    )


def deep(image: Image.Image) -> Image.Image:
    """16 bit grey."""
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def shallow(image: Image.Image) -> Image.Image:
    """8-bit values in a file of 16 bits."""
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16))


def in_format(suffix: str) -> Harm:
    """The picture in another format, under its own suffix."""

    def harm(path: Path, _) -> None:
        Image.open(path).convert("RGB").save(path.with_suffix(suffix))
        path.unlink()

    return harm


def inverted(image: Image.Image) -> Image.Image:
    return Image.fromarray(255 - np.asarray(image))


def turned(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.ROTATE_90)


def same(field: str, tolerance: float = 0.0) -> Works:
    def check(found: TryOnSample, sound: TryOnSample) -> None:
        assert (getattr(found, field) - getattr(sound, field)).abs().float().mean() <= tolerance

    return check


def grey(found: TryOnSample, sound: TryOnSample) -> None:
    """The luminance (ITU-R BT.601) in all three channels, to two and a half of 255 levels."""
    luminance = torch.einsum("chw,c->hw", sound.person, torch.tensor([0.299, 0.587, 0.114]))
    assert (found.person == found.person[0]).all() and (
        found.person[0] - luminance
    ).abs().mean() < 0.02


def one_line(error: Exception | str) -> str:
    assert len(str(error).splitlines()) == 1
    return str(error)


# ---- data folders ----

PHOTO, CLOTH = "test/image/01000_00.jpg", "test/cloth/01000_00.jpg"
MASK, SILHOUETTE = "test/agnostic-mask/01000_00_mask.png", "test/cloth-mask/01000_00.jpg"
PARSE, JOINTS = "test/image-parse-v3/01000_00.png", "test/openpose_json/01000_00_keypoints.json"
PARTS, LIST, TAGS = (
    "test/image-densepose/01000_00.jpg",
    "test_pairs.txt",
    "test/vitonhd_test_tagged.json",
)
PAIRS = "01000_00.jpg 01001_00.jpg\n01001_00.jpg 01000_00.jpg\n"


def tag(name: str, item) -> dict:
    return {"file_name": name, "tag_info": [{"tag_name": "item", "tag_category": item}]}


def person(numbers) -> dict:
    return {"people": [{"pose_keypoints_2d": numbers}]}


def nobody(found: TryOnSample, sound: TryOnSample) -> None:
    assert not found.keypoints.any() and found.agnostic_mask.any()


def renamed(root: Path, new: str) -> None:
    """One pair under a name in other letters, on disk and in the list."""
    for path in sorted((root / "test").rglob("01000_00*")):
        path.rename(path.with_name(path.name.replace("01000_00", new)))
    (root / LIST).write_text(PAIRS.replace("01000_00", new), encoding="utf-8")


def accented(found: TryOnSample, sound: TryOnSample) -> None:
    assert found.pair_id == "übung_试穿__übung_试穿" and (found.person == sound.person).all()


def decomposed(path: Path, _) -> None:
    """Accents as macOS writes them into archives, apart from their letters; not so in the list."""
    renamed(path.parent, "übung_é")
    for file in sorted((path.parent / "test").rglob("übung_é*")):
        file.rename(file.with_name(unicodedata.normalize("NFD", file.name)))


def same_under_another_name(found: TryOnSample, sound: TryOnSample) -> None:
    assert found.pair_id == "übung_é__übung_é" and (found.person == sound.person).all()


def one_folder_deeper(path: Path, _) -> None:
    """As an archive leaves it that brings a folder of its own."""
    entries = list(path.iterdir())
    (path / "zalando-hd-resized").mkdir()
    for entry in entries:
        entry.rename(path / "zalando-hd-resized" / entry.name)


def agnostic_instead(mode: str) -> Harm:
    """The person under a grey region, where the mask should be."""

    def harm(path: Path, _) -> None:
        person = np.array(Image.open(path.parents[1] / "image/01000_00.jpg"))
        person[np.asarray(Image.open(path)) > 0] = 128
        Image.fromarray(person).convert(mode).save(path)

    return harm


def labels_in_colours(path: Path, _) -> None:
    parse = Image.open(path.parents[1] / "image-parse-v3/01000_00.png")
    parse.convert("RGB").save(path)


def cut_out(path: Path, _) -> None:
    """A garment on nothing, as background removers save it."""
    garment = Image.open(path.parents[1] / "cloth/01000_00.jpg")
    garment.putalpha(Image.open(path).convert("L"))
    garment.save(path, format="PNG")


def resorted(image: Image.Image) -> Image.Image:
    """The same colours by other indices, as an optimiser of PNG files leaves them."""
    order = np.random.default_rng(0).permutation(256).astype(np.uint8)
    colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    palette = np.zeros((256, 3), np.uint8)
    palette[order[: len(colours)]] = colours
    moved = Image.fromarray(order[np.asarray(image)])
    moved.putpalette(palette.tobytes())
    return moved


def grey_palette_resorted(image: Image.Image) -> Image.Image:
    """Grey labels that an optimiser has stored with a palette of its own order."""
    grey = Image.fromarray(np.asarray(image))
    grey.putpalette(bytes(np.arange(256, dtype=np.uint8).repeat(3)))
    return resorted(grey)


def in_palette(palette: bytes, change=lambda ids: ids) -> Callable[[Image.Image], Image.Image]:
    def repaint(image: Image.Image) -> Image.Image:
        other = Image.fromarray(change(np.asarray(image)))
        other.putpalette(palette)
        return other

    return repaint


def half_known(image: Image.Image) -> Image.Image:
    """Two labels exchanged with their colours, and one in a colour of no label."""
    palette = bytearray(labels.VITON_HD_PALETTE)
    upper, pants = 3 * labels.UPPER, 3 * labels.PANTS
    palette[upper : upper + 3], palette[pants : pants + 3] = (
        palette[pants : pants + 3],
        palette[upper : upper + 3],
    )
    palette[3 * labels.FACE : 3 * labels.FACE + 3] = (201, 13, 77)
    return in_palette(bytes(palette))(image)


def atr(ids: np.ndarray) -> np.ndarray:
    """DressCode's numbers of the labels."""
    return np.vectorize(TO_DRESSCODE.get)(ids).astype(np.uint8)


def iuv(path: Path, _) -> None:
    """Part, U and V in three channels, as detectron2's `dump` is often saved."""
    parts = figure(1000)["parts"]
    rng = np.random.default_rng(0)
    uv = rng.integers(0, 256, (*parts.shape, 2)).astype(np.uint8) * (parts > 0)[..., None]
    Image.fromarray(np.dstack([parts, uv])).save(path, quality=95)


def ids_as(suffix: str) -> Harm:
    """DensePose's part ids as grey values."""

    def harm(path: Path, _) -> None:
        path.unlink()
        save(path.with_suffix(suffix), figure(1000)["parts"])

    return harm


def channels_reversed(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image)[..., ::-1].copy())


def scaled(by: float) -> dict:
    return body_25(JOINT_PLACES * by)


def crossed(path: Path, _) -> None:
    path.write_text("01001_00.jpg 01000_00.jpg\n")
    for name in ("image/01001_00.jpg", "cloth/01000_00.jpg"):
        (path.parent / "test" / name).unlink()


VITON_HD: dict[str, tuple[str, Harm, str | Works]] = {
    "photo: zero bytes": (PHOTO, emptied, "image is an empty file"),
    "photo: truncated": (PHOTO, cut, "image cannot be decoded"),
    "photo: not a picture": (PHOTO, written("<html>"), "image cannot be decoded"),
    "photo: absent": (PHOTO, absent, "image is missing"),
    "photo: a folder": (PHOTO, folder_instead, "image cannot be decoded: .*Is a directory"),
    "photo: a link to nowhere": (PHOTO, link_to_nowhere, "image is missing"),
    "photo: no permission": (PHOTO, forbidden, "image cannot be decoded: .*Permission denied"),
    "photo: CMYK": (
        PHOTO,
        saved(lambda image: image.convert("CMYK"), quality=95),
        same("person", 0.05),
    ),
    "photo: grey": (PHOTO, saved(lambda image: image.convert("L")), grey),
    "photo: 16 bit": (PHOTO, saved(deep, format="PNG"), grey),
    "photo: 8 bit in 16": (PHOTO, saved(shallow, format="PNG"), "image shows nothing: all of it"),
    "photo: WebP": (
        PHOTO,
        in_format(".webp"),
        "image is missing .* There is 01000_00.webp, which is not read",
    ),
    "garment: grey throughout": (
        CLOTH,
        saved(lambda image: image.point(lambda _: 128)),
        "garment shows nothing: all of it has one colour",
    ),
    "parse map: JPEG": (
        PARSE,
        in_format(".jpg"),
        r"parse map is missing .* There is 01000_00.jpg, which is not read: .* end in .png\.",
    ),
    "photo: EXIF-rotated": (PHOTO, lying, same("person", 0.02)),
    "photo: EXIF that is none": (
        PHOTO,
        saved(Image.Image.copy, format="PNG", exif=b"Exif\0\0garbage"),
        "image cannot",
    ),
    "photo: transparent": (
        PHOTO,
        saved(lambda image: image.convert("RGBA"), format="PNG"),
        same("person"),
    ),
    "photo: wrong size": (PHOTO, saved(turned), "parse map is 72x96, image is 96x72"),
    "garment: zero bytes": (CLOTH, emptied, "garment is an empty file"),
    "garment: absent": (CLOTH, absent, "garment is missing"),
    "garment mask: inverted": (SILHOUETTE, saved(inverted), "garment mask sets .* inverted mask"),
    "garment mask: wrong size": (
        SILHOUETTE,
        saved(turned),
        "garment mask is 96x72, image is 72x96",
    ),
    "garment mask: one is absent": (SILHOUETTE, absent, "garment mask is missing"),
    "mask: inverted": (
        MASK,
        saved(inverted),
        "agnostic mask sets 83% of the picture: inverted mask",
    ),
    "mask: nothing set": (
        MASK,
        saved(lambda image: image.point(lambda _: 0)),
        "agnostic mask is empty",
    ),
    "mask: 0 and 1": (
        MASK,
        saved(lambda image: image.point(lambda v: v // 255)),
        "Masks hold 0 and 255",
    ),
    "mask: three channels": (
        MASK,
        saved(lambda image: image.convert("RGB")),
        same("agnostic_mask"),
    ),
    "mask: 16 bit": (MASK, saved(deep), same("agnostic_mask")),
    "mask: one bit": (MASK, saved(lambda image: image.convert("1")), same("agnostic_mask")),
    "mask: EXIF-rotated": (MASK, lying, same("agnostic_mask")),
    "mask: wrong size": (MASK, saved(turned), "agnostic mask is 96x72, image is 72x96"),
    "mask: one is absent": (MASK, absent, "agnostic mask is missing"),
    "masks: a file for the folder": (
        "test/agnostic-mask",
        file_instead,
        "is a file or a link to nowhere",
    ),
    "masks: a link to nowhere": (
        "test/agnostic-mask",
        link_to_nowhere,
        "is a file or a link to nowhere",
    ),
    "parse map: colours": (
        PARSE,
        saved(lambda image: image.convert("RGB")),
        "parse map has mode RGB",
    ),
    "parse map: luminance": (
        PARSE,
        saved(lambda i: i.convert("RGB").convert("L")),
        "parse map has label .* luminance",
    ),
    "parse map: 16 bit": (PARSE, saved(deep), "parse map has mode I;16"),
    "mask: constant transparency": (
        MASK,
        saved(lambda image: image.convert("RGBA")),
        same("agnostic_mask"),
    ),
    "mask: an agnostic picture": (
        MASK,
        agnostic_instead("RGB"),
        "agnostic mask is coloured over .* it looks like an agnostic picture",
    ),
    "mask: an agnostic picture in grey": (
        MASK,
        agnostic_instead("L"),
        "agnostic mask is grey over .* it looks like an agnostic picture",
    ),
    "mask: a parse map": (MASK, labels_in_colours, "it looks like a map of labels in colours"),
    "mask: a photograph": (
        MASK,
        lambda path, _: shutil.copy(path.parents[1] / "image/01000_00.jpg", path),
        "agnostic mask is coloured over",
    ),
    "garment mask: a cut-out": (SILHOUETTE, cut_out, "garment mask is a cut-out"),
    "parse map: re-sorted palette": (PARSE, saved(resorted), same("parse")),
    "parse map: grey palette, re-sorted": (PARSE, saved(grey_palette_resorted), same("parse")),
    "parse map: SCHP's palette": (PARSE, saved(in_palette(labels.VOC_PALETTE)), same("parse")),
    "parse map: SCHP's palette, re-sorted": (
        PARSE,
        saved(lambda image: resorted(in_palette(labels.VOC_PALETTE)(image))),
        same("parse"),
    ),
    "parse map: some known colours elsewhere": (
        PARSE,
        saved(half_known),
        "parse map has the colour of label .* and colours of no label",
    ),
    "parse map: ATR's numbers in grey": (
        PARSE,
        saved(lambda image: Image.fromarray(atr(np.asarray(image)))),
        "keypoints do not fit: .*another parser",
    ),
    "parse map: ATR's numbers in colours": (
        PARSE,
        saved(in_palette(labels.VOC_PALETTE, atr)),
        "keypoints do not fit: .*another parser",
    ),
    "keypoints: fractions": (
        JOINTS,
        holding(scaled(1 / 1024)),
        "keypoints lie between 0 and .* Multiply x by 768",
    ),
    "keypoints: of a smaller picture": (
        JOINTS,
        holding(scaled(1 / 2)),
        "keypoints do not fit: only .* lie on the person",
    ),
    "DensePose: IUV": (PARTS, iuv, "of its body is in none of the part colours"),
    "DensePose: BGR": (
        PARTS,
        saved(channels_reversed, quality=95),
        "of its body is in none of the part colours",
    ),
    "DensePose: ids in grey": (PARTS, ids_as(".png"), same("densepose", 0.05)),
    "DensePose: ids in grey JPEG": (PARTS, ids_as(".jpg"), "it looks like part ids"),
    "DensePose: nobody": (
        PARTS,
        saved(lambda image: image.point(lambda _: 0)),
        "DensePose picture does not fit: it shows next to no body part",
    ),
    "parse map: truncated": (PARSE, cut, "parse map cannot be decoded"),
    "keypoints: nobody": (JOINTS, holding({"version": 1.3, "people": []}), nobody),
    "keypoints: zero bytes": (JOINTS, emptied, "keypoints cannot be read"),
    "keypoints: truncated": (JOINTS, cut, "keypoints cannot be read"),
    "keypoints: endless brackets": (JOINTS, written("[" * 100_000), "keypoints cannot be read"),
    "keypoints: no people": (JOINTS, holding({}), "keypoints have no list 'people'"),
    "keypoints: a person that is none": (
        JOINTS,
        holding({"people": [3]}),
        "pose_keypoints_2d has no list",
    ),
    "keypoints: too few": (
        JOINTS,
        holding(person([1, 2, 3])),
        "pose_keypoints_2d has 3 numbers, expected 75",
    ),
    "keypoints: text": (JOINTS, holding(person(["1.5"] * 75)), "keypoints hold '1.5'"),
    "keypoints: not a number": (JOINTS, holding(person([float("nan")] * 75)), "keypoints hold nan"),
    "keypoints: beyond floats": (JOINTS, holding(person([10**400] * 75)), "keypoints hold 1000"),
    "keypoints: lists of lists": (
        JOINTS,
        holding(person([[1, 2, 3]] * 75)),
        r"keypoints hold \[1, 2, 3\]",
    ),
    "keypoints: no permission": (
        JOINTS,
        forbidden,
        "keypoints cannot be read: .*Permission denied",
    ),
    "keypoints: folder not listed": (
        "test/openpose_json",
        forbidden,
        "folder cannot be listed .*Permission denied",
    ),
    "keypoints: no folder": (
        "test/openpose_json",
        lambda path, _: shutil.rmtree(path),
        "no folder for the keypoints",
    ),
    "DensePose: wrong size": (PARTS, saved(turned), "DensePose picture is 96x72, image is 72x96"),
    "DensePose: other colours": (
        PARTS,
        saved(lambda i: i.point(lambda _: 250)),
        "in none of the part colours",
    ),
    "DensePose: truncated": (PARTS, cut, "DensePose picture cannot be decoded"),
    "list: CRLF, blanks and tabs": (
        LIST,
        written("\r\n" + PAIRS.replace("\n", "\r\n\r\n").replace(" ", "\t  ")),
        same("person"),
    ),
    "list: byte order mark": (LIST, written("\ufeff" + PAIRS), same("person")),
    "list: no suffixes, or others": (
        LIST,
        written(PAIRS.replace("01000_00.jpg", "01000_00.PNG")),
        same("person"),
    ),
    "list: non-ASCII names": (LIST, lambda path, _: renamed(path.parent, "übung_试穿"), accented),
    "list: other accents": (LIST, decomposed, same_under_another_name),
    "root: a folder above": ("", one_folder_deeper, r"Set data\.root=.*/zalando-hd-resized\."),
    "list: crossed": (LIST, crossed, "is missing .*Are the columns of the pair list crossed"),
    "list: zero bytes": (LIST, emptied, "pair list is empty"),
    "list: blank lines alone": (LIST, written("\n \r\n"), "pair list is empty"),
    "list: one column": (LIST, written("01000_00.jpg\n"), "line 1 of .* has 1 columns"),
    "list: commas": (LIST, written(PAIRS.replace(" ", ",")), "line 1 of .* has 1 columns"),
    "list: four columns": (LIST, written(PAIRS + "a b c d\n"), "line 3 of .* has 4 columns"),
    "list: out of the folder": (
        LIST,
        written("../../etc/passwd a.jpg\n"),
        "line 1 .* plain file names .* without the folders before them",
    ),
    "list: out of it by the garment": (
        LIST,
        written("01000_00.jpg ..\\a.jpg\n"),
        "line 1 .* plain file names",
    ),
    "list: not UTF-8": (LIST, written(PAIRS.encode("utf-16")), "pair list is not readable"),
    "list: absent": (LIST, absent, "pair list is missing"),
    "list: a folder": (LIST, folder_instead, "pair list is not readable .*Is a directory"),
    "list: no permission": (LIST, forbidden, "pair list is not readable .*Permission denied"),
    "captions: zero bytes": (TAGS, emptied, "caption tags are not readable"),
    "captions: a list": (TAGS, holding([]), "caption tags are not readable"),
    "captions: endless brackets": (
        TAGS,
        written('{"data":' + "[" * 100_000),
        "caption tags are not readable",
    ),
    "captions: a folder": (TAGS, folder_instead, "caption tags are not readable .*Is a directory"),
    "captions: a link to nowhere": (TAGS, link_to_nowhere, "caption tags are not readable"),
    "captions: no file name": (
        TAGS,
        holding({"data": [{"tag_info": []}]}),
        "entry 1 of .* has no 'file_name'",
    ),
    "captions: no tags": (
        TAGS,
        holding({"data": [tag("a.jpg", "top"), {"file_name": "b.jpg"}]}),
        "entry 2 of .* no",
    ),
    "captions: a number": (
        TAGS,
        holding({"data": [tag("a.jpg", 3)]}),
        "entry 1 of .* has another structure",
    ),
}

# Named is another file than the one that was harmed: the one that no longer fits, or the folder
# around it.
NAMED_OTHERWISE = {
    ("viton_hd", "parse map: ATR's numbers in grey"): JOINTS,
    ("viton_hd", "parse map: ATR's numbers in colours"): JOINTS,
    ("dresscode", "label map: LIP's numbers in grey"): "upper_body/keypoints/000001_2.json",
    ("viton_hd", "photo: wrong size"): PARSE,
    ("viton_hd", "list: crossed"): "test/image/01001_00.jpg",
    ("viton_hd", "keypoints: no folder"): "test",
    ("dresscode", "category: absent"): "",
    ("dresscode", "keypoints: a category has none"): "dresses",
}


def shoulders_alone(found: TryOnSample, sound: TryOnSample) -> None:
    assert [found.keypoints[joint].any().item() for joint in (2, 3, 4, 5, 6, 7)] == [
        True,
        False,
        False,
    ] * 2


DRESSCODE: dict[str, tuple[str, Harm, str | Works]] = {
    "joints: missing": (
        "upper_body/keypoints/000001_2.json",
        holding(coco_18(missing=(3, 4, 6, 7))),
        shoulders_alone,
    ),
    "joints: 17": (
        "upper_body/keypoints/000001_2.json",
        holding({"keypoints": coco_18()["keypoints"][:17]}),
        "not 18 rows",
    ),
    "joints: text": (
        "upper_body/keypoints/000001_2.json",
        holding({"keypoints": [["1", "2", "3"]] * 18}),
        "keypoints hold '1'",
    ),
    "label map: of another parser": (
        "upper_body/label_maps/000001_4.png",
        saved(lambda i: i.point(lambda v: v + 30)),
        "parse map has label .* expected 0 to 17",
    ),
    "label map: VITON-HD's colours": (
        "upper_body/label_maps/000001_4.png",
        saved(in_palette(labels.VITON_HD_PALETTE, lambda ids: labels.FROM_DRESSCODE[ids])),
        "parse map has the colours of VITON-HD's labels",
    ),
    "label map: LIP's numbers in grey": (
        "upper_body/label_maps/000001_4.png",
        saved(lambda i: Image.fromarray(labels.FROM_DRESSCODE[np.asarray(i)])),
        "keypoints do not fit: .*another parser",
    ),
    "label map: re-sorted palette": (
        "upper_body/label_maps/000001_4.png",
        saved(resorted),
        same("parse"),
    ),
    "joints: fractions": (
        "upper_body/keypoints/000001_2.json",
        holding(coco_18(JOINT_PLACES / 512)),
        "keypoints lie between 0 and .* Multiply x by 384",
    ),
    "DensePose labels: wrong size": (
        "upper_body/dense/000001_5.png",
        saved(turned),
        "is 96x72, image is 72x96",
    ),
    "list: crossed": (
        "test_pairs_paired.txt",
        written("000001_1.jpg\t000001_0.jpg\t0\n"),
        "Are the columns crossed",
    ),
    "list: no category": (
        "test_pairs_paired.txt",
        written("000001_0.jpg\t000001_1.jpg\n"),
        "no category 0, 1 or 2",
    ),
    "list: category 7": (
        "test_pairs_paired.txt",
        written("000001_0.jpg\t000001_1.jpg\t7\n"),
        "no category 0, 1 or 2",
    ),
    "list: paired with another": (
        "test_pairs_paired.txt",
        written("000001_0.jpg\t000003_1.jpg\t0\n"),
        "is a paired list but pairs 000001_0 with 000003_1",
    ),
    "list: CRLF": (
        "test_pairs_paired.txt",
        written("000001_0.jpg  000001_1.jpg 0\r\n\r\n"),
        same("person"),
    ),
    "list: absent, there are the categories'": ("test_pairs_paired.txt", absent, same("person")),
    "list: a link to nowhere": ("test_pairs_paired.txt", link_to_nowhere, "pair list is missing"),
    "keypoints: a category has none": (
        "dresses/keypoints",
        lambda path, _: shutil.rmtree(path),
        "no folder for the keypoints below .*/dresses; known names: keypoints/",
    ),
    "root: a folder above": ("", one_folder_deeper, r"Set data\.root=.*/zalando-hd-resized\."),
    "category: absent": ("dresses", lambda path, _: shutil.rmtree(path), r"no folder dresses/"),
    "captions: a line without one": (
        "upper_body/dc_caption.txt",
        written("000001_1.jpg red\r\n\r\n000000_1.jpg \r\n"),
        r"line 3 of .* has no caption after '000000_1.jpg'",
    ),
    "captions: not UTF-8": (
        "upper_body/dc_caption.txt",
        written(b"000001_1.jpg \xff\n"),
        "captions are not readable",
    ),
}


FOLDERS = {"viton_hd": VITON_HD, "dresscode": DRESSCODE}


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[str, Path]:
    """Folders without a fault: VITON-HD's with agnostic masks and captions."""
    root = tmp_path_factory.mktemp("sound")
    write_dresscode(root / "dresscode", count=1)
    write_viton_hd(root / "viton_hd", train=1, test=2)
    (root / "viton_hd" / LIST).write_text(PAIRS)
    mask = np.zeros((96, 72), np.uint8)
    mask[20:60, 20:50] = 255
    for name in (
        "train/agnostic-mask/00000_00",
        "test/agnostic-mask/01000_00",
        "test/agnostic-mask/01001_00",
    ):
        save(root / "viton_hd" / f"{name}_mask.png", mask)
    write_json(
        root / "viton_hd" / TAGS,
        {"data": [tag("01000_00.jpg", "blouse"), tag("01001_00.jpg", "top")]},
    )
    return {name: root / name for name in ("viton_hd", "dresscode")}


def settings(dataset: str, root: Path):
    return config(dataset, root, densepose=True, warp_source="none")


@functools.cache
def first(dataset: str, root: Path, order: str = "paired") -> TryOnSample:
    return TryOnDataset(open_folder(settings(dataset, root)), "test", order)[0].check()


@pytest.mark.parametrize(
    ("dataset", "case"), [(dataset, case) for dataset in FOLDERS for case in FOLDERS[dataset]]
)
def test_data_folders(dataset, case, sound, tmp_path, monkeypatch, capsys):
    """The data set and `vton data check` say the same, which then exits with 1."""
    file, harm, expected = FOLDERS[dataset][case]
    root = shutil.copytree(sound[dataset], tmp_path / "data")
    harm(root / file, monkeypatch)
    if callable(expected):
        expected(first(dataset, root), first(dataset, sound[dataset]))
        assert not [
            str(problem)
            for problem in check_folder(settings(dataset, root))
            if problem.severity != "note"
        ]
        return
    with pytest.raises(DataError, match=expected) as error:
        first(dataset, root, "unpaired" if harm is crossed else "paired")
    named = str(root / NAMED_OTHERWISE.get((dataset, case), file))
    assert named in one_line(error.value)
    asked = ("data.size=[96,72]", "data.densepose=true", "data.warp_source=none", "data.workers=0")
    with pytest.raises(SystemExit, match="1"):
        main(["data", "check", f"data={dataset}", f"data.root={root}", *asked])
    *said, _ = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("note ", "required ", "optional ")) for line in said)
    found = [line for line in said if line.startswith("required ")]
    assert any(re.search(expected, line) for line in found) and any(named in line for line in found)


def test_the_folder_itself(sound, tmp_path):
    for root, category, expected in (
        (tmp_path / "nowhere", "all", "no folder .*nowhere.*data.root"),
        (sound["viton_hd"] / LIST, "all", "no folder .*test_pairs.txt"),
        (Path("~nobody_of_this_name/data"), "all", "no folder ~nobody_of_this_name/data"),
        (sound["viton_hd"], "dresses", "data.category=dresses"),
    ):
        with pytest.raises(DataError, match=expected) as error:
            open_folder(config("viton_hd", root, category=category))
        one_line(error.value)


def test_a_stray_file_whose_name_is_no_text(sound, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = shutil.copytree(sound["viton_hd"], tmp_path / "data")
    Path(os.fsdecode(os.fsencode(root / "test") + b"/caf\xe9.jpg")).write_bytes(b"")
    require_clean(config("viton_hd", root))


# ---- settings ----

OVERRIDES = {
    "train.learnig_rate=1": "no key 'learnig_rate' in 'train'",
    "data.sise=3": "Did you mean: 'size'?",
    "trian.steps=3": "Did you mean: 'train'?",
    "model=gardif": "Did you mean: 'gardiff'?",
    "preset=tinyy": "Did you mean: 'tiny'?",
    "preset=../../etc/passwd": "preset=../../etc/passwd: no such preset",
    "ablation=nothing/row": "ablation=nothing",
    "ablation=gardiff/nothing": "ablation=gardiff/nothing: no row",
    "steps": "not of the form key=value",
    "=3": "not of the form key=value",
    "train.lr=[": "Cannot read the overrides",
    "train.lr=" + "[" * 3000 + "]" * 3000: "Cannot read the overrides",
    "train.lr=!!python/object:os.system x": "Cannot read the overrides",
    "train.lr=fast": "train.lr: Value 'fast' of type 'str' could not be converted to Float",
    "train.lr=null": "train.lr: ",
    "train.lr=???": "train.lr=???: give it a value",
    "train.lr=${train.lr}": "train.lr: Recursive interpolation",
    "train.lr=${nothing}": "train.lr: Interpolation key 'nothing' not found",
    "train.lr=-1": "train.lr=-1.0 must be above 0",
    "train.lr=nan": "train.lr=nan must be above 0",
    "train.lr=inf": "train.lr=inf must be above 0",
    "train.lr.x=1": "train.lr.x: ",
    "codec.widths.x=1": "codec.widths.x: ",
    "train=3": "train: ",
    "train.steps=1.5": "train.steps: ",
    "train.steps=true": "train.steps: Value 'True' of type 'bool'",
    "train.batch_size=0": "train.batch_size=0 must be at least 1",
    "train.betas=[0.9]": "train.betas: ",
    "train.betas=[0.9,2]": "train.betas=[0.9, 2.0] must be in [0, 1) each",
    "train.warmup_steps=-1": "train.warmup_steps=-1 must be at least 0",
    "train.val_pairs=0": "train.val_pairs=0 must be at least 1",
    "data.size=64": "data.size: ",
    "data.size=[64]": "data.size: ",
    "data.size=[a,b]": "data.size: Value '['a', 'b']' of type 'list' could not be converted",
    "data.size=[8,8]": "data.size=[8, 8] must be at least 16 each",
    "data.limit_train=-1": "data.limit_train=-1 must be at least 0",
    "data.workers=-1": "data.workers=-1 must be at least 0",
    "data.augment.flip=1.5": "data.augment.flip=1.5 must be in [0, 1]",
    "data.augment.scale=[0,1]": "data.augment.scale=[0.0, 1.0] must be in [0.01, 100] each",
    "data.synthetic.test=0": "data.synthetic.test=0 must be at least 1",
    "data.person_caption=a shirt": "data.person_caption='a shirt' lacks {}",
    "sampler.solver=euler": "sampler.solver: Invalid value 'euler'",
    "sampler.guidance_interval=[0.5,0.2]": "sampler.guidance_interval",
    "sampler.guidance=nan": "sampler.guidance=nan must be at least 0",
    "sampler.steps=5000": "sampler.steps=5000 is more than objective.train_timesteps=1000",
    "preset=paper sampler.steps=1000": "and sampler.spacing=leading: at most 999",
    "preset=paper sampler.solver=unipc sampler.steps=999": "sampler.spacing=leading: at most 998",
    "objective.train_timesteps=0": "objective.train_timesteps=0 must be at least 1",
    "codec.patch=0": "codec.patch=0 must be at least 1",
    "codec.widths=[]": "codec.widths=[]",
    "model.name=idm_vton": "model.name=idm_vton: a file of configs/ is chosen by model=",
    "model.mode=[1]": "model.mode: Invalid value '[1]', expected one of",
    "model.mode=${nothing}": "model.mode=${nothing} is not a name",
    "model.unet=3": "model.unet: ",
    "model.condition_dropout=7": "model.condition_dropout=7.0 must be in [0, 1]",
    "trainer.devices=0": "trainer.devices=0 must be at least 1, or -1",
    "eval.orders=[]": "eval.orders=[]",
    "eval.size=[8,8]": "eval.size=[8, 8] must be at least 16 each",
    "compare.seeds=[a]": "compare.seeds: ",
    "seed=-1": "seed=-1 must be in [0, 4294967295]",
    "compare.seeds=[0,-1]": "compare.seeds=[0, -1] must be in [0, 4294967295] each",
    "train.steps=100000000000000000000": "train.steps=100000000000000000000 is more than",
    "data.pad=2": "data.pad=2 must be true or false",
    "eval.repaint=-1": "eval.repaint=-1 must be true or false",
    "eval.metrics=[]": "eval.metrics=[] names no metric",
    "eval.metrics=[psnr,psnr]": "eval.metrics=['psnr', 'psnr'] must name each once",
    "eval.orders=[paired,paired]": "eval.orders=['paired', 'paired'] must name each once",
    "objective.beta_start=0": "objective.beta_start=0 and objective.beta_end=0.012 must satisfy",
    "objective.beta_end=1": "objective.beta_end=1 must satisfy",
    "objective.beta_end=0.0001": "objective.beta_end=0.0001 must satisfy",
    "name=/tmp/run": "name=/tmp/run must name a folder below runs=runs",
    "name=../run": "name=../run must name a folder below runs=runs",
    "name=.": "name=. must name a folder below runs=runs",
    "model.unet.heads=[0,2,2]": "model.unet.heads=[0, 2, 2] must be at least 1 each",
    "model.unet.groups=-8": "model.unet.groups=-8 must be at least 1",
    "model.unet.widths=[80]": "model.unet: A UNet's settings describe different numbers of levels",
    "model.clip.fit=stretch": "model.clip.fit: Invalid value 'stretch'",
    "model.appearance.weight=.nan": "model.appearance.weight=nan must be at least 0",
    "model=tryondiffusion model.base.heads=0": "model.base.heads=0 must be at least 1",
    "model=tryondiffusion model.sr256.blocks=[1]": "model.sr256: A UNet's settings describe",
    "model=imagdressing model.pose.start=2": "model.pose: A ControlNet's start=2.0",
    "model=warp model.tps.points=2": "model.tps.points=2 must be at least 3",
}


@pytest.mark.parametrize("override", OVERRIDES, ids=lambda override: override[:40])
def test_overrides(override):
    with pytest.raises(ConfigError, match=re.escape(OVERRIDES[override])) as error:
        load(*re.split(r" (?=model\.|sampler\.)", override))
    assert len(one_line(error.value)) < 600


@pytest.mark.parametrize("model", registry.folders())
def test_no_number_is_nan_or_beyond_64_bits(model):
    """Of any section of any model, whether or not it has bounds of its own."""
    config = load(f"model={model}")
    numbers = [key for key, value in flatten(asdict(config)).items() if type(value) in (int, float)]
    assert len(numbers) > 50
    settings = OmegaConf.structured(config)
    check_bounds(settings)
    for key in numbers:
        number = OmegaConf.select(settings, key)
        OmegaConf.update(settings, key, 2**64 if isinstance(number, int) else math.nan)
        with pytest.raises(ConfigError, match=re.escape(key)):
            check_bounds(settings)
        OmegaConf.update(settings, key, number)


RUN_CONFIGS = {
    "zero bytes": (b"", "no model.name"),
    "no model": (b"train: {lr: 1.0}", "no model.name"),
    "truncated": (b"model: [unclosed", "not readable as YAML"),
    "a number": (b"3", "not readable as YAML"),
    "a list": (b"[model]", "expected keys and values"),
    "not UTF-8": (b"\xff\xfe", "not readable as YAML"),
    "a key twice": (b"seed: 1\nseed: 2", "not readable as YAML"),
    "endless brackets": (b"[" * 3000, "not readable as YAML"),
    "an object": (b"!!python/object/apply:os.system ['true']", "not readable as YAML"),
    "no such model": (b"model: {name: gardif}", "Did you mean: 'gardiff'"),
    "a number for a name": (b"model: {name: 3}", "model.name=3 is not a name"),
    "no such reference": (
        b"model: {name: gardiff}\ndata: ${nothing}",
        "data: Interpolation key 'nothing' not found",
    ),
    "of another version": (
        b"model: {name: gardiff}\ntrain: {momentum: 1}",
        "no key 'momentum' in 'train'",
    ),
    "a list too short": (b"model: {name: gardiff}\ndata: {size: [64]}", "data.size: "),
    "a value left out": (b"model: {name: gardiff}\nseed: ???", "seed=???"),
}


@pytest.mark.parametrize("case", RUN_CONFIGS)
def test_run_configurations(case, tmp_path):
    content, expected = RUN_CONFIGS[case]
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(expected)) as error:
        load_settings(tmp_path / "config.yaml")
    assert str(tmp_path / "config.yaml") in one_line(error.value)


def test_an_unreadable_run_configuration(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    path.write_text("model: {name: gardiff}")
    assert load_settings(path).model.name == "gardiff"
    with pytest.raises(ConfigError, match=r"^train\.lr: "):  # the override's fault, not the file's
        load_settings(path, "train.lr=fast")
    forbidden(path, monkeypatch)
    with pytest.raises(ConfigError, match=r"config\.yaml.*Permission denied") as error:
        load_settings(path)
    one_line(error.value)


# ---- checkpoints ----


def torch_file(content) -> Harm:
    return lambda path, _: torch.save(content, path)


def without_one(path: Path, _) -> None:
    state = load_file(path)
    state.pop(min(state))
    save_file(state, path)


def of_another_shape(path: Path, _) -> None:
    state = load_file(path)
    save_file(state | {min(state): torch.zeros(7)}, path)


WEIGHTS, LAST, CODEC = (
    "checkpoints/weights.safetensors",
    "checkpoints/last.ckpt",
    "codec/codec.safetensors",
)
UNSAFE = "not a safe, complete torch file"
CHECKPOINTS: dict[str, tuple[str, Harm, str | None]] = {
    "weights: sound": (WEIGHTS, lambda path, _: None, None),
    "weights: zero bytes": (WEIGHTS, emptied, "not a readable safetensors file"),
    "weights: truncated": (WEIGHTS, cut, "not a readable safetensors file"),
    "weights: absent": (WEIGHTS, absent, "does not exist: .* has not finished training"),
    "weights: a folder": (WEIGHTS, folder_instead, "No weights at"),
    "weights: one is missing": (WEIGHTS, without_one, r"does not fit .*1 missing \("),
    "weights: another shape": (WEIGHTS, of_another_shape, r"1 mismatched \(.* \(7,\) for"),
    "last: zero bytes": (LAST, emptied, UNSAFE),
    "last: truncated": (LAST, cut, UNSAFE),
    "last: text": (LAST, written("<html>"), UNSAFE),
    "last: a tensor": (LAST, torch_file(torch.zeros(2)), "no state_dict"),
    "last: bare weights": (LAST, torch_file({"a": torch.zeros(2)}), "no state_dict"),
    "last: numbers for weights": (
        LAST,
        torch_file({"state_dict": {"a": 3}, "callbacks": {}, "global_step": 1}),
        "missing",
    ),
    "codec: zero bytes": (CODEC, emptied, "not a readable safetensors file"),
    "codec: absent": (CODEC, absent, "No weights at"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> RunFolder:
    """A run folder as training leaves it, but for the learning."""
    module = tiny_module("gardiff")
    settings = module.config
    settings.runs, settings.name = str(tmp_path_factory.mktemp("runs")), "sound"
    run = RunFolder.of(settings)
    run.start(settings)
    module.codec.save(run.codec)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    save_file(state, run.weights)
    torch.save({"state_dict": state, "callbacks": {}, "global_step": 5}, run.last)
    return run


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoints(case, trained, tmp_path):
    file, harm, expected = CHECKPOINTS[case]
    run = RunFolder(shutil.copytree(trained.path, tmp_path / "run"))
    harm(run.path / file, None)
    which = "last" if file == LAST else "weights"
    if expected is None:
        assert load_module(run, run.load_config(), which) and read_progress(run, 1) == {"steps": 5}
        return
    with pytest.raises(UserError, match=expected) as error:
        load_module(run, run.load_config(), which)
    assert str(run.path / file) in one_line(error.value)


def test_resuming_from_what_is_no_checkpoint(tmp_path):
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    torch.save({"state_dict": {}, "callbacks": {}}, run.last)
    with pytest.raises(
        UserError, match=r"last\.ckpt: not the checkpoint of a training; it has no global_step"
    ):
        read_progress(run, 1)


def test_a_broken_training_json_is_named(trained, tmp_path):
    run = RunFolder(shutil.copytree(trained.path, tmp_path / "run"))
    for content in ("", '{"steps": 5', "3"):
        run.training.write_text(content)
        with pytest.raises(UserError, match=r"training\.json is not readable") as error:
            run.trained()
        one_line(error.value)


AUTOENCODER = CodecConfig(name="kl", widths=(8, 8), layers=1, groups=4)
AUTOENCODERS: dict[str, tuple[str, Harm, str]] = {
    "weights: one is missing": (
        "diffusion_pytorch_model.safetensors",
        without_one,
        "lack decoder.conv_in.bias",
    ),
    "weights: another shape": (
        "diffusion_pytorch_model.safetensors",
        of_another_shape,
        "decoder.conv_in.bias",
    ),
    "weights: zero bytes": (
        "diffusion_pytorch_model.safetensors",
        emptied,
        "cannot load AutoencoderKL",
    ),
    "weights: absent": ("diffusion_pytorch_model.safetensors", absent, "cannot load AutoencoderKL"),
    "config: zero bytes": ("config.json", emptied, "cannot load AutoencoderKL"),
    "config: a number": ("config.json", written("3"), "cannot load AutoencoderKL"),
    "config: a word for a number": (
        "config.json",
        written('{"latent_channels": "x"}'),
        "cannot load AutoencoderKL",
    ),
}


@pytest.mark.parametrize("case", AUTOENCODERS)
def test_folders_of_pretrained_weights(case, tmp_path):
    """Of what is missing, diffusers only warns: it would go on with random values."""
    file, harm, expected = AUTOENCODERS[case]
    KLCodec(small_autoencoder(AUTOENCODER)).save(tmp_path / "codec")
    harm(tmp_path / "codec" / file, None)
    with pytest.raises(UserError, match=re.escape(expected)) as error:
        load_codec(AUTOENCODER, tmp_path / "codec")
    assert str(tmp_path / "codec") in one_line(error.value)


# ---- folders of pictures ----

PRED, TARGET, AREA = "pred/a.png", "target/a.png", "mask/a.png"
PICTURES: dict[str, tuple[str, Harm, str | None]] = {
    "sound": (PRED, lambda path, _: None, None),
    "prediction: zero bytes": (PRED, emptied, "not readable as a picture"),
    "prediction: truncated": (PRED, cut, "not readable as a picture"),
    "prediction: text": (PRED, written("<html>"), "not readable as a picture"),
    "prediction: absent": (PRED, absent, "missing, its target has no prediction"),
    "prediction: a link to nowhere": (PRED, link_to_nowhere, "not readable as a picture"),
    "prediction: no permission": (PRED, forbidden, "not readable as a picture"),
    "prediction: wrong size": (PRED, saved(turned), "64x48 .*are 48x64"),
    "prediction: too many": (
        PRED,
        lambda path, _: shutil.copy(path, path.with_name("z.png")),
        "no picture of that",
    ),
    "prediction: twice": (
        PRED,
        lambda path, _: shutil.copy(path, path.with_suffix(".jpg")),
        "have one name",
    ),
    "prediction: CMYK": (PRED, saved(lambda image: image.convert("CMYK"), format="TIFF"), None),
    "prediction: EXIF-rotated": (PRED, lying, None),
    "prediction: transparent": (PRED, saved(lambda image: image.convert("RGBA")), None),
    "target: absent": (TARGET, absent, "no picture of that name"),
    "target: truncated": (TARGET, cut, "not readable as a picture"),
    "mask: zero bytes": (AREA, emptied, "an empty file"),
    "mask: absent": (AREA, absent, "no file for it in"),
    "mask: wrong size": (AREA, saved(turned), "64x48, .* is 48x64"),
    "mask: 16 bit": (AREA, saved(deep), None),
    "folder: absent": ("pred", lambda path, _: shutil.rmtree(path), "no such folder"),
    "folder: a file": ("pred", file_instead, "no such folder"),
    "folder: not listed": ("pred", forbidden, "cannot be listed: Permission denied"),
    "folder: without a picture": (
        "pred",
        lambda path, _: [p.unlink() for p in path.iterdir()],
        "no pictures",
    ),
    "list: zero bytes": ("list.txt", emptied, "an empty list"),
    "list: CRLF and blank lines": ("list.txt", written("a.jpg x\r\n\r\nb\r\nc.PNG y z\r\n"), None),
    "list: not UTF-8": ("list.txt", written(b"\xff\xfe"), "not readable as a list"),
    "list: of other names": ("list.txt", written("a\nb\nc\nd\n"), "d: missing, but in"),
    "prompts: truncated": ("prompts.json", written('{"a": '), "not readable as JSON"),
    "prompts: endless brackets": ("prompts.json", written("[" * 100_000), "not readable as JSON"),
    "prompts: a list": ("prompts.json", written("[]"), "expected prompts by name"),
    "out: a folder": ("rows.json", folder_instead, "is a folder. Name a file"),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Three predictions, targets and masks, a list of them and prompts."""
    root = tmp_path_factory.mktemp("pictures")
    for seed, name in enumerate("abc"):
        photo = figure(seed, (64, 48))["photo"]
        save(root / "target" / f"{name}.png", photo)
        save(root / "pred" / f"{name}.png", photo // 2)
        save(
            root / "mask" / f"{name}.png",
            np.uint8(255) * (figure(seed, (64, 48))["parse"] == labels.UPPER),
        )
    (root / "list.txt").write_text("a\nb\nc\n")
    write_json(root / "prompts.json", dict.fromkeys("abc", "a shirt"))
    return root


def score(root: Path, capsys, listed: bool = False) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the real command."""
    options = {
        "pred": "pred",
        "target": "target",
        "mask": "mask",
        "prompts": "prompts.json",
        "out": "rows.json",
    }
    options |= {"list": "list.txt"} if listed else {}
    words = [word for option, name in options.items() for word in (f"--{option}", str(root / name))]
    with pytest.raises(SystemExit) as stop:
        main(["metrics", *words, "--metrics", "psnr", "--json"])
    return (stop.value.code or 0, *capsys.readouterr())


@pytest.mark.parametrize("case", PICTURES)
def test_picture_folders(case, pictures, tmp_path, monkeypatch, capsys):
    file, harm, expected = PICTURES[case]
    root = shutil.copytree(pictures, tmp_path / "pictures")
    harm(root / file, monkeypatch)
    code, out, said = score(root, capsys, listed=file == "list.txt")
    if expected is None:
        assert code == 0, said
        whole, garment = (row["metrics"]["psnr"] for row in json.loads(out))
        sound = json.loads(score(pictures, capsys)[1])
        tolerance = 0.5 if case.endswith("CMYK") else 1e-9
        assert [whole, garment] == [
            pytest.approx(row["metrics"]["psnr"], abs=tolerance) for row in sound
        ]
        return
    assert code == 2 and re.search(expected, one_line(said)) and str(root) in said
    assert Path(file).stem in said


def test_a_device_that_is_not_there(pictures, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(
            [
                "metrics",
                "--pred",
                str(pictures / "pred"),
                "--target",
                str(pictures / "target"),
                "--device",
                "gpu9",
            ]
        )
    assert "--device gpu9: not usable here" in one_line(capsys.readouterr().err)
