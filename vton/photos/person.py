"""One photograph of a person, made ready: found, framed, parsed, masked, and looked over.

What a photograph lacks for a category is an error, what it merely makes harder a warning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image
from scipy import ndimage

from vton.config import MaskRule
from vton.data import labels, pose
from vton.data.crosscheck import joints_against_parse
from vton.data.derived.agnostic import agnostic_mask
from vton.data.images import INVERTED
from vton.data.sample import Category
from vton.photos.backends import Networks
from vton.photos.errors import PhotoError
from vton.photos.framing import Frame, Layout, person_frame, trunk
from vton.photos.small import CERTAIN, HEAD, HIPS, SHOULDERS

Choice = Literal["only", "largest"]

SIZE = (1024, 768)  # height, width of both layouts' pictures
SMALLEST = 96  # px, height of the frame
ARMS_REACH = 0.45  # how far a person's pixels may lie beside all joints, in torsos
LEAST_SIDE = 64  # px of a photograph
LYING = 50  # degrees from upright
UPSIDE_DOWN = 130
FROM_BEHIND = 0.25  # torsos by which the right shoulder lies right of the left one
EMPTY = 0.005  # share of the frame below which a mask is taken for empty
KNEES = (pose.RIGHT_KNEE, pose.LEFT_KNEE)
WRISTS = (pose.RIGHT_WRIST, pose.LEFT_WRIST)
# Without these there is nothing to put a garment of the category on; without the second ones the
# garment's lower end is guesswork.
NEEDED = {
    "upper_body": {"shoulders": SHOULDERS, "hips": HIPS},
    "lower_body": {"hips": HIPS},
    "dresses": {"shoulders": SHOULDERS, "hips": HIPS},
}
WISHED = {
    "upper_body": {"wrists": WRISTS},
    "lower_body": {"knees": KNEES},
    "dresses": {"knees": KNEES, "wrists": WRISTS},
}
GARMENT_NAMES = {"upper_body": "a top", "lower_body": "trousers or a skirt", "dresses": "a dress"}


@dataclass
class PreparedPerson:
    """A person in a layout's frame, with the annotations that a data set has.

    photo:      the photograph, upright RGB
    frame:      the part of it that the picture shows
    picture:    RGB at `size`
    parse:      (H, W) uint8, labels of vton.data.labels
    joints:     (18, 3) float32, x and y in [0, 1] of the picture, validity 0 or 1
    confidence: (18,) of the joints, 0 to 1
    mask:       (H, W) bool, where the picture is repainted
    densepose:  (H, W) uint8 part ids, or None
    warnings:   what makes the result harder, a sentence each
    """

    photo: Image.Image
    frame: Frame
    picture: Image.Image
    parse: np.ndarray
    joints: np.ndarray
    confidence: np.ndarray
    mask: np.ndarray
    densepose: np.ndarray | None
    category: Category
    warnings: list[str] = field(default_factory=list)


def prepare_person(
    photo: Image.Image,
    category: Category,
    networks: Networks,
    *,
    layout: Layout | None = None,
    size: tuple[int, int] = SIZE,
    choice: Choice = "only",
    rule: MaskRule = "safe",
) -> PreparedPerson:
    """Find the person of a photograph, frame and annotate them.

    photo:  upright RGB. layout: whose manner of framing; by default VITON-HD's for tops and
            DressCode's for all else. size: height, width of the picture. choice: "largest" takes
            the largest of several people. rule: of the agnostic mask.
    Raises PhotoError, saying what is wrong with the photograph and what to do.
    """
    layout = layout or layout_of(category)
    if min(photo.size) < LEAST_SIDE:
        raise PhotoError(
            "person",
            f"the photo is {photo.width}x{photo.height}; at least {LEAST_SIDE} pixels a side are "
            "needed. Use the original picture, not a thumbnail.",
        )
    people = networks.pose.people(photo)
    found = one_of(people, photo, choice)
    _require_upright(found, photo)
    joints = certain(found)
    _require_joints(joints, category, layout)
    frame = person_frame(joints, photo.size, layout, size[1] / size[0])
    warnings = _warnings(joints * _scale(photo), category)
    warnings += _require_size(frame, size)
    picture = frame.cut(photo, size)
    framed = _inside(frame.to_frame(joints, photo.size))
    parse = networks.parser.parse(picture, framed, category)
    if len(people) > 1:
        parse = of_person(parse, framed)
    unfit = joints_against_parse(framed, parse)
    if unfit:
        raise PhotoError(
            "person",
            f"what the networks see in the photo does not fit together: {unfit}. Use a clearer "
            "photo, or other networks (--pose blaze, --parser fashn).",
        )
    mask = agnostic_mask(parse, framed * np.float32([size[1], size[0], 1]), category, rule)
    worn = np.isin(parse, labels.GARMENT_LABELS[category])
    if not worn.any():
        warnings.append(
            f"no {GARMENT_NAMES[category].removeprefix('a ')} was recognised on the person; the "
            "mask follows the joints alone"
        )
    require_mask(mask)
    parts = None if networks.densepose is None else networks.densepose.parts(picture)
    return PreparedPerson(
        photo=photo,
        frame=frame,
        picture=picture,
        parse=parse,
        joints=framed,
        confidence=found[:, 2],
        mask=mask,
        densepose=parts,
        category=category,
        warnings=warnings,
    )


def layout_of(category: Category) -> Layout:
    """VITON-HD holds tops only, DressCode all three categories."""
    return "viton_hd" if category == "upper_body" else "dresscode"


def one_of(people: list[np.ndarray], photo: Image.Image, choice: Choice) -> np.ndarray:
    """The person to dress. Raises PhotoError for nobody, and for several unless one is chosen."""
    if not people:
        raise PhotoError(
            "person",
            "no person was found in the photo. Use a photo that shows one person from the front, "
            "upright, from the head to the hips at least.",
        )
    if len(people) == 1:
        return people[0]
    if choice != "largest":
        raise PhotoError(
            "person",
            f"{len(people)} persons are in the photo, which should show one. Crop it, or have the "
            "largest taken: --person largest, or the box below the photo on the page.",
        )
    return max(people, key=lambda person: trunk(certain(person) * _scale(photo))[1])


def certain(joints: np.ndarray) -> np.ndarray:
    """Joints with validity in place of confidence; those outside the photo are not valid."""
    kept = joints.astype(np.float32).copy()
    kept[:, 2] = joints[:, 2] >= CERTAIN
    return _inside(kept)


def of_person(parse: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """The parse map without people who are not these joints': regions apart, and what lies beyond
    the arms' reach.
    """
    height, width = parse.shape
    regions, _ = ndimage.label(parse > 0, np.ones((3, 3)))
    valid = joints[joints[:, 2] > 0]
    columns = (valid[:, 0] * width).astype(int).clip(0, width - 1)
    rows = (valid[:, 1] * height).astype(int).clip(0, height - 1)
    own = np.setdiff1d(np.unique(regions[rows, columns]), [0])
    kept = np.where(np.isin(regions, own), parse, np.uint8(labels.BACKGROUND))
    _, torso = trunk(valid_pixels(joints, parse.shape))
    place = np.arange(width)
    reach = ARMS_REACH * torso
    beyond = (place < columns.min() - reach) | (place > columns.max() + reach)
    kept[:, beyond] = labels.BACKGROUND
    return kept


def valid_pixels(joints: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Joints in pixels of a picture of (height, width)."""
    return joints * np.float32([size[1], size[0], 1])


def require_mask(mask: np.ndarray) -> None:
    """Raise PhotoError for a mask with nothing to paint, or of nearly the whole picture."""
    if mask.mean() < EMPTY:
        raise PhotoError(
            "mask",
            "the mask is empty: nothing would be painted. Paint over the garment to replace, or "
            "use a photo that shows it.",
        )
    if mask.mean() > INVERTED:
        raise PhotoError(
            "mask",
            f"the mask covers {mask.mean():.0%} of the picture, so hardly anything of the person "
            "would stay. White means repaint; is it inverted?",
        )


def _require_upright(joints: np.ndarray, photo: Image.Image) -> None:
    """Raise PhotoError for a person who lies, or stands on the head."""
    points = certain(joints) * _scale(photo)
    hips = points[list(HIPS)]
    hips = hips[hips[:, 2] > 0]
    if points[pose.NECK, 2] == 0 or not len(hips):
        return
    across, down = hips[:, :2].mean(0) - points[pose.NECK, :2]
    angle = abs(np.degrees(np.arctan2(across, down)))
    if angle > UPSIDE_DOWN:
        raise PhotoError(
            "person", "the person is upside down. Turn the photo by 180 degrees and try again."
        )
    if angle > LYING:
        way = "clockwise" if across > 0 else "anticlockwise"
        raise PhotoError(
            "person",
            "the person lies, or the photo lies on its side. If somebody stands in it, turn it by "
            f"90 degrees {way}; lying people are not supported.",
        )


def _require_joints(joints: np.ndarray, category: Category, layout: Layout) -> None:
    """Raise PhotoError where the photo does not show what the category needs."""
    seen = joints[:, 2] > 0
    if not seen[list(HEAD)].any() and layout == "viton_hd":
        raise PhotoError(
            "person",
            "the head is not visible. Use a photo that shows the person from the head down.",
        )
    for name, pair in NEEDED[category].items():
        if not seen[list(pair)].any():
            raise PhotoError(
                "person",
                f"the {name} are not visible: the photo is cut off or they are covered, and "
                f"{GARMENT_NAMES[category]} needs them. Use a photo that shows more of the person.",
            )
    if category != "lower_body" and not seen[list(SHOULDERS)].all():
        raise PhotoError(
            "person",
            "one shoulder is not visible: the photo is cut off there, or the person stands "
            "sideways. Use a photo from the front that shows both.",
        )
    if trunk(joints)[1] == 0:
        raise PhotoError(
            "person",
            "neither shoulders nor a whole thigh are visible, so the person's size is unknown. Use "
            "a photo that shows more of the person.",
        )


def _warnings(joints: np.ndarray, category: Category) -> list[str]:
    """What makes the result harder. joints: in pixels of the photo."""
    seen = joints[:, 2] > 0
    missing = []
    for name, pair in WISHED[category].items():
        absent = int((~seen[list(pair)]).sum())
        if absent:
            one = name.removesuffix("s")
            missing.append(f"both {name} are" if absent == 2 else f"one {one} is")
    warnings = [f"{what} not visible; the garment's end there is guesswork" for what in missing]
    right, left = joints[list(SHOULDERS)]
    if seen[list(SHOULDERS)].all() and right[0] - left[0] > FROM_BEHIND * trunk(joints)[1]:
        warnings.append(
            "the person seems to be seen from behind; garments are drawn as from the front"
        )
    return warnings


def _require_size(frame: Frame, size: tuple[int, int]) -> list[str]:
    """Raise PhotoError for a person too small to tell anything; a warning for one enlarged."""
    if frame.height < SMALLEST:
        raise PhotoError(
            "person",
            f"the person is too small: the part to cut out is {frame.height:.0f} pixels high, but "
            f"at least {SMALLEST} are needed. Use a closer or larger photo.",
        )
    if frame.height < size[0] / 3:
        return [
            f"the person is small: {frame.height:.0f} pixels are enlarged to {size[0]}, which shows"
        ]
    return []


def _inside(joints: np.ndarray) -> np.ndarray:
    return pose.drop_outside(joints)


def _scale(photo: Image.Image) -> np.ndarray:
    return np.float32([photo.width, photo.height, 1])
