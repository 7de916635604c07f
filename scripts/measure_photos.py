"""What docs/photos.md says of the small networks: `python scripts/measure_photos.py`.

40 rendered people and garments that the parser has not learned from, drawn as plain photographs,
are prepared and compared with the renderer's own annotation. With --real FOLDER also the test pairs
of a folder in VITON-HD's layout, compared with its parse maps and joints. With --run RUN how long
`vton tryon` takes in all, and how soon the page of `vton demo` answers.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vton.data import labels, pose
from vton.data.derived.agnostic import agnostic_mask
from vton.data.images import Origin
from vton.data.synthetic.catalogue import Catalogue
from vton.data.synthetic.render import draw_person, draw_product
from vton.photos.backends import Networks
from vton.photos.errors import PhotoError
from vton.photos.garment import prepare_garment
from vton.photos.parser.rendered import joints_of
from vton.photos.person import prepare_person

SEED = 777  # the parser has learned from another one, and from training splits
PEOPLE = 40
EXAMPLES = Path(__file__).parents[1] / "data/examples"
SIZE = (1024, 768)
SHOWN = {"shoulders": (2, 5), "elbows": (3, 6), "wrists": (4, 7), "hips": (8, 11)}


@dataclass
class Subject:
    """A photograph of a person, and what is known of it."""

    photo: Image.Image
    parse: np.ndarray
    joints: np.ndarray
    category: str
    layout: str


def rendered() -> Iterator[Subject]:
    """Half in VITON-HD's framing, half in DressCode's, these of all categories."""
    half = PEOPLE // 2
    for layout, count in (("viton_hd", half), ("dresscode", -(-half // 3))):
        catalogue = Catalogue(layout, SIZE, 1, max(2, count), SEED)
        entries = catalogue.of("test")[:half]
        for entry in entries:
            scene = catalogue.scene(entry)
            (drawing,) = draw_person(scene.person, [scene.outfit()], SIZE)
            photo = Image.fromarray(drawing.picture)
            yield Subject(photo, drawing.parse, joints_of(scene.person), entry.category, layout)


def real(folder: Path) -> Iterator[Subject]:
    for path in sorted((folder / "test/image").glob("*.jpg")):
        photo = Image.open(path).convert("RGB")
        parse = np.array(Image.open(folder / f"test/image-parse-v3/{path.stem}.png"))
        file = folder / f"test/openpose_json/{path.stem}_keypoints.json"
        joints = pose.read_body_25(file, Origin("viton_hd", "test", path.stem))
        yield Subject(photo, parse, joints, "upper_body", "viton_hd")


def measure_people(name: str, subjects: Iterator[Subject], networks: Networks) -> None:
    agreement, hidden, seconds, errors = [], [], [], []
    for place, subject in enumerate(subjects):
        started = time.process_time()
        try:
            person = prepare_person(
                subject.photo, subject.category, networks, layout=subject.layout, size=SIZE
            )
        except PhotoError as error:
            print(f"{name} {place}: {error}")
            agreement.append(0.0)
            hidden.append(0.0)
            continue
        seconds.append(time.process_time() - started)
        pixels = np.float32([SIZE[1], SIZE[0], 1])
        truth = agnostic_mask(subject.parse, subject.joints * pixels, subject.category)
        back = person.frame.to_photo(person.joints, subject.photo.size)
        mask = person.mask
        if person.frame.height != subject.photo.height:  # cut: compare in the frame
            cut = person.frame.cut(Image.fromarray(truth).convert("RGB"), SIZE)
            truth = np.asarray(cut)[..., 0] >= 128
        worn = np.isin(subject.parse, labels.GARMENT_LABELS[subject.category])
        if person.frame.height != subject.photo.height:
            worn = np.asarray(person.frame.cut(Image.fromarray(worn).convert("RGB"), SIZE))
            worn = worn[..., 0] >= 128
        agreement.append((mask & truth).sum() / (mask | truth).sum())
        hidden.append((mask & worn).sum() / worn.sum())
        away = np.hypot(*((back - subject.joints)[:, :2] * subject.photo.size).T)
        known = (subject.joints[:, 2] > 0) & (back[:, 2] > 0)
        errors.append(np.where(known, away / subject.photo.height, np.nan))
    of_joint = np.nanmean(np.array(errors), 0)
    print(
        f"{name}: {len(agreement)} people; mask IoU {np.mean(agreement):.3f} "
        f"(min {min(agreement):.3f}), garment hidden {np.mean(hidden):.3f} "
        f"(min {min(hidden):.3f}), {np.median(seconds[1:]):.2f} s each"
    )
    parts = [f"{part} {of_joint[list(pair)].mean():.2%}" for part, pair in SHOWN.items()]
    print(f"    joints, of the height: {', '.join(parts)}; all {np.nanmean(of_joint):.2%}")


def measure_garments(networks: Networks) -> None:
    catalogue = Catalogue("viton_hd", SIZE, 1, PEOPLE, SEED)
    agreement, seconds = [], []
    for entry in catalogue.of("test"):
        picture, silhouette = draw_product(catalogue.garment(entry), SIZE)
        started = time.process_time()
        garment = prepare_garment(Image.fromarray(picture), networks, size=SIZE)
        seconds.append(time.process_time() - started)
        agreement.append((garment.mask & silhouette).sum() / (garment.mask | silhouette).sum())
    print(
        f"garments: {len(agreement)}; mask IoU {np.mean(agreement):.3f} "
        f"(min {min(agreement):.3f}), {np.median(seconds[1:]):.2f} s each"
    )


def measure_commands(run: Path, densepose: str) -> None:
    """Of one core each, from the start of the process."""
    one_core = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    vton = [sys.executable, "-m", "vton"]
    of_run = ["--run", str(run), "--densepose", densepose]
    with tempfile.TemporaryDirectory() as folder:
        pictures = [str(EXAMPLES / f"{kind}.jpg") for kind in ("person", "garment")]
        out = ["--out", f"{folder}/tryon.png", *of_run, "--device", "cpu"]
        before, started = os.times(), time.perf_counter()
        subprocess.run([*vton, "tryon", *pictures, *out], env=one_core, check=True)
        wall, after = time.perf_counter() - started, os.times()
    computed = sum(after[2:4]) - sum(before[2:4])  # of the child
    print(f"vton tryon: {wall:.1f} s in all, {computed:.1f} s of them computing")
    started = time.perf_counter()
    arguments = [*vton, "demo", *of_run, "--port", "0"]
    with subprocess.Popen(arguments, env=one_core, stdout=subprocess.PIPE, text=True) as server:
        address = server.stdout.readline().split()[1]
        ready = time.perf_counter()
        with urllib.request.urlopen(address, timeout=60) as page:
            page.read()
        answered = time.perf_counter()
        for line in server.stdout:
            if "loaded" in line:
                break
        else:
            raise RuntimeError(f"{' '.join(arguments)} ended before its networks were loaded.")
        loaded = time.perf_counter()
        server.send_signal(signal.SIGINT)
    print(
        f"vton demo: address printed after {ready - started:.1f} s, first page "
        f"{answered - ready:.2f} s later, networks loaded {loaded - started:.1f} s after the start"
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--real", type=Path, help="a folder in VITON-HD's layout")
    arguments.add_argument("--pose", default="small")
    arguments.add_argument("--run", type=Path, help="a run, to time the commands with")
    arguments.add_argument("--densepose", default="none", help="for runs that read it: small")
    chosen = arguments.parse_args()
    if chosen.run:
        measure_commands(chosen.run, chosen.densepose)
        return
    torch.set_num_threads(1)
    networks = Networks.named(pose=chosen.pose)
    measure_people("rendered", rendered(), networks)
    measure_garments(networks)
    if chosen.real:
        measure_people("real", real(chosen.real), networks)


if __name__ == "__main__":
    main()
