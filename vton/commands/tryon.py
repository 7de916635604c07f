"""`vton tryon`: a garment's photograph on a person's photograph, drawn by a trained run."""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from vton.commands.choice import chosen_stage
from vton.commands.prepare import chosen_networks
from vton.config import ConfigError
from vton.errors import UserError
from vton.files import replacing
from vton.photos.reading import read_mask, read_picture
from vton.progress import Progress
from vton.training.trainer import quiet_libraries
from vton.tryon import TryOn
from vton.tryon.session import same_shape

FORMATS = (".png", ".jpg", ".jpeg", ".webp")


def run(args: Namespace) -> None:
    started = time.perf_counter()
    quiet_libraries()
    given = [Path(path) for path in (args.person_photo, args.garment_photo, args.mask) if path]
    targets = output_files(Path(args.out), args.count, given)
    person = read_picture(Path(args.person_photo), "person")
    garment = read_picture(Path(args.garment_photo), "garment")
    mask = on_photo(read_mask(Path(args.mask)), person.size) if args.mask else None
    args.overrides = [f"runs={args.runs}"]
    try_on = TryOn(stage=chosen_stage(args), networks=chosen_networks(args), device=args.device)
    prepared = try_on.person(person, args.category, mask, args.person)
    product = try_on.garment(garment)
    for warning in (*prepared.warnings, *product.warnings):
        print(f"warning: {warning}.", file=sys.stderr)
    total = try_on.total_steps(args.count, args.steps)
    with Progress("Drawing", total, "step") as progress:
        drawn = try_on.draw(
            prepared,
            [product],
            seed=args.seed,
            steps=args.steps,
            guidance=args.guidance,
            count=args.count,
            captions=[args.caption] if args.caption else (),
            watch=lambda done, total: progress.advance(),
        )
    for path, one in zip(targets, drawn, strict=True):
        save(one.picture, path)
        print(f"{path}: seed {one.seed}")
    seconds = time.perf_counter() - started
    print(f"{try_on.config.model.label} of {try_on.stages[-1].run.path}, {seconds:.1f} s.")


def output_files(out: Path, count: int, given: Sequence[Path] = ()) -> list[Path]:
    """Where `count` pictures go: out.png, or out_1.png, out_2.png, ....

    given: the photographs that were brought, which must not be written over. Raises UserError.
    """
    if out.is_dir():
        raise UserError(f"--out {out} is a folder. Name a file in it, such as {out / 'tryon.png'}.")
    if out.suffix.lower() not in FORMATS:
        raise ConfigError(f"--out {out}: pictures end in {', '.join(FORMATS)}.")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}.")
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"--out {out}: no permission to write in {out.parent}.")
    targets = [out]
    if count != 1:
        targets = [out.with_stem(f"{out.stem}_{number}") for number in range(1, count + 1)]
    for target in targets:
        for photo in given:
            if target.exists() and photo.exists() and target.samefile(photo):
                raise UserError(
                    f"--out {out} would write over {photo}, which is read. Name another file."
                )
    return targets


def on_photo(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A mask painted on a copy of the photo of any size, at the photo's size (width, height).

    So that a copy which happens to have the frame's size is not taken for a mask of the frame.
    """
    return mask.resize(size, Image.Resampling.BILINEAR) if same_shape(mask.size, size) else mask


def save(picture: Image.Image, path: Path) -> None:
    """What was there before stays until the picture is whole. Raises UserError."""
    options = {} if path.suffix.lower() == ".png" else {"quality": 95}
    with replacing(path) as temporary:
        picture.save(temporary, Image.registered_extensions()[path.suffix.lower()], **options)
