"""Do the files of one sample belong together? The data check and training apply the same tests.

Each function compares two files that are readable and plausible on their own, and returns in words
what is wrong, or "". Bounds lie far from the values of right files, so that no unusual photograph
is refused; in return, some wrong files pass. Measured on three persons of VITON-HD in our sample
and on 150 to 300 rendered ones in both layouts (tests/data/test_crosscheck.py):

    joints on the person             right 1.00; coordinates of another size .0 to .9, mean .3 to .7
    joints on labels of their limb   right 1.00; another parser's numbers .36 to .93, mean .6
    nose on the head                 right always; another parser's numbers 1 of 60
    DensePose parts on the person    right 1.00
    agnostic mask over the garment   right 1.00
    garment mask and outline (IoU)   right .86 to .99; another garment's .38 to .96
    colours of warp and garment      right 1 to 21 levels apart; another garment's 9 to 238
"""
# Shapes: H W height and width of the stored picture, J = 18 COCO-18 joints

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from scipy import ndimage

from vton.data import images, labels
from vton.data.folder import PairFiles
from vton.data.labels import GARMENT_LABELS
from vton.data.sample import Category

FEWEST = 5  # joints that must be found to compare them at all
RADIUS = 0.02  # share of the height around a joint, in which its label may be
FITTING = 0.7  # share of joints that must fit, in one sample
FITTING_ON_AVERAGE = 0.9  # the same over a split, which has odd photographs but no odd average
AVERAGED_FROM = 4  # samples
# With the nose off the head, more of the other joints must fit.
FITTING_WITHOUT_NOSE = 0.95

PERSON_SHARE = 0.02  # share of the picture from which a parse map shows a person
FEWEST_PARTS = 0.1  # DensePose's area as a share of the person's
PARTS_ON_PERSON = 0.5  # share of DensePose's area
COVERED = 0.1  # share of the garment that an agnostic mask must cover
INVERTED = 0.5  # share of the picture from which a mask that covers no garment is inverted
LEAKING = 0.5  # covered share below which there is a note: a published rule leaves skirts visible
SILHOUETTE = 0.6  # IoU of a garment mask and what stands out from white
FAR_COLOUR = 60  # RGB distance between the mean colours of a warp and of its garment

_HEAD = (labels.FACE, labels.HAIR, labels.HAT, labels.SUNGLASSES, labels.NECK)
_WORN_ABOVE = (labels.UPPER, labels.DRESS, labels.COAT, labels.SCARF, labels.BAG)
_ARMS = (labels.LEFT_ARM, labels.RIGHT_ARM, labels.GLOVE)
_WORN_BELOW = (labels.PANTS, labels.SKIRT, labels.BELT)
_LEGS = (labels.LEFT_LEG, labels.RIGHT_LEG, labels.SOCKS, labels.LEFT_SHOE, labels.RIGHT_SHOE)
# Where each COCO-18 joint may lie: on its own limb, on what is worn there, or behind an arm or bag.
_LABELS_OF_JOINT = (
    _HEAD,  # nose
    (*_WORN_ABOVE, *_HEAD),  # neck
    (*_WORN_ABOVE, *_HEAD, *_ARMS),  # right shoulder
    *[(*_WORN_ABOVE, *_ARMS, *_WORN_BELOW, labels.HAIR)] * 2,  # right elbow, wrist
    (*_WORN_ABOVE, *_HEAD, *_ARMS),  # left shoulder
    *[(*_WORN_ABOVE, *_ARMS, *_WORN_BELOW, labels.HAIR)] * 2,  # left elbow, wrist
    (*_WORN_ABOVE, *_WORN_BELOW, *_ARMS),  # right hip
    *[(*_WORN_BELOW, *_LEGS, labels.DRESS, labels.COAT, labels.BAG)] * 2,  # right knee, ankle
    (*_WORN_ABOVE, *_WORN_BELOW, *_ARMS),  # left hip
    *[(*_WORN_BELOW, *_LEGS, labels.DRESS, labels.COAT, labels.BAG)] * 2,  # left knee, ankle
    *[_HEAD] * 4,  # eyes, ears
)


def require(files: PairFiles, contents: Mapping[str, np.ndarray]) -> None:
    """Raise DataError for the first certain doubt about these parts of a sample."""
    for part, words, certain in doubts(files, contents):
        if certain:
            raise files.origin(part).error(words, files.path(part))


def doubts(files: PairFiles, contents: Mapping[str, np.ndarray]) -> Iterator[tuple[str, str, bool]]:
    """For every doubt: the part, what is wrong with it, and whether that is certain.

    contents: the parts of a pair that were read, by name: label maps, masks and pictures
        (H, W, ...), and joints. Other parts are not compared.
    """
    parse = contents.get("parse")
    if parse is not None:
        if "keypoints" in contents:
            words = joints_against_parse(contents["keypoints"], parse)
            if words:
                yield "keypoints", f"keypoints do not fit: {words}", True
        if "densepose" in contents and contents["densepose"].shape == parse.shape:
            words = densepose_against_parse(contents["densepose"], parse)
            if words:
                yield "densepose", f"DensePose picture does not fit: {words}", True
        if "agnostic_mask" in contents and contents["agnostic_mask"].shape == parse.shape:
            mask = contents["agnostic_mask"]
            words, certain = mask_against_parse(mask, parse, files.pair.category)
            if words:
                yield "agnostic_mask", f"agnostic mask does not fit: {words}", certain
    garment, silhouette = contents.get("garment"), contents.get("garment_mask")
    if garment is None or silhouette is None or silhouette.shape != garment.shape[:2]:
        return
    words = silhouette_against_garment(silhouette, garment)
    if words:
        yield "garment_mask", f"garment mask may be another's: {words}", False
    if "warped_garment" in contents and "warped_mask" in contents:
        warped, covered = contents["warped_garment"], contents["warped_mask"]
        words = warp_against_garment(warped, covered, garment, silhouette)
        if words:
            yield "warped_garment", f"warped garment may be another's: {words}", False


def joint_shares(joints: np.ndarray, parse: np.ndarray) -> tuple[float, float] | None:
    """Shares of the joints that lie on the person, and on labels of their own limb.

    joints: (J, 3) x and y in [0, 1] and validity. parse: (H, W) in vton.data.labels. None for fewer
    joints than prove anything, and for a parse map that shows nobody.
    """
    found = np.flatnonzero(joints[:, 2])
    if len(found) < FEWEST or (parse[::4, ::4] > 0).mean() < PERSON_SHARE:
        return None
    near = {joint: _labels_at(joints[joint], parse) for joint in found}
    on_person = [near[joint].any() for joint in found]
    fitting = [np.isin(near[joint], _LABELS_OF_JOINT[joint]).any() for joint in found]
    return float(np.mean(on_person)), float(np.mean(fitting))


def joints_against_parse(joints: np.ndarray, parse: np.ndarray) -> str:
    """What is wrong if joints (J, 3) and parse map (H, W) cannot be of one person, else ""."""
    shares = joint_shares(joints, parse)
    if shares is None:
        return ""
    on_person, fitting = shares
    if on_person < FITTING:
        return (
            f"only {on_person:.0%} of the joints lie on the person of the parse map: another "
            "person, or coordinates of another picture size"
        )
    lost = _nose_off_head(joints, parse)
    if fitting < FITTING or (lost and fitting < FITTING_WITHOUT_NOSE):
        at = f", and {lost} at the nose" if lost else ""
        return (
            f"only {fitting:.0%} of the joints lie on the parse map's labels of their limb{at}: "
            "its numbers may be those of another parser"
        )
    return ""


def on_average(shares: list[tuple[float, float]]) -> str:
    """What is wrong if the `joint_shares` of a whole split are too low on average, else ""."""
    if len(shares) < AVERAGED_FROM:
        return ""
    on_person, fitting = np.mean(shares, axis=0)
    if on_person < FITTING_ON_AVERAGE:
        return (
            f"only {on_person:.0%} of all joints lie on the persons of the parse maps: "
            "their coordinates may be those of another picture size"
        )
    if fitting < FITTING_ON_AVERAGE:
        return (
            f"only {fitting:.0%} of all joints lie on the parse maps' labels of their own limb: "
            "the numbers may be those of another parser"
        )
    return ""


def densepose_against_parse(parts: np.ndarray, parse: np.ndarray) -> str:
    """What is wrong if DensePose parts (H, W) are not on the parse map's person, else ""."""
    person = parse[::4, ::4] > 0
    body = parts[::4, ::4] > 0
    if person.mean() < PERSON_SHARE:
        return ""
    if body.sum() < FEWEST_PARTS * person.sum():
        return "it shows next to no body part, but the parse map shows a person"
    if (body & person).sum() < PARTS_ON_PERSON * body.sum():
        share = (body & person).sum() / body.sum()
        return f"only {share:.0%} of its body parts lie on the person of the parse map"
    return ""


def mask_against_parse(mask: np.ndarray, parse: np.ndarray, category: Category) -> tuple[str, bool]:
    """What is wrong if an agnostic mask (H, W) leaves the worn garment visible, else "".

    The second value is whether it is certain. It is not for lower bodies, unless the mask sets most
    of the picture: the published rule of DressCode covers trousers and leaves skirts.
    """
    garment = np.isin(parse[::4, ::4], GARMENT_LABELS[category])
    if garment.mean() < PERSON_SHARE:
        return "", False
    covered = (mask[::4, ::4] & garment).sum() / garment.sum()
    if covered >= LEAKING:
        return "", False
    words = f"it covers only {covered:.0%} of the garment that the parse map shows"
    share = mask.mean()
    inverted = covered < COVERED and share > INVERTED
    if inverted:
        words += f", but {share:.0%} of the picture: inverted mask"
    return words, inverted or (covered < COVERED and category != "lower_body")


def silhouette_against_garment(mask: np.ndarray, garment: np.ndarray) -> str:
    """What is odd if a garment mask (H, W) is not what stands out from white in its picture.

    garment: (H, W, 3) uint8. Returns "" for pictures on another background.
    """
    mask, garment = mask[::4, ::4], garment[::4, ::4].astype(np.int16)
    background = np.median(images.frame(garment), axis=0)
    if background.min() < images.NEAR_WHITE:
        return ""
    differs = (np.abs(garment - background) > images.BACKGROUND_NOISE).any(axis=2)
    outline = ndimage.binary_fill_holes(differs)
    if outline.mean() < images.PLAUSIBLE[0]:
        return ""
    overlap = (mask & outline).sum() / max(1, (mask | outline).sum())
    if overlap >= SILHOUETTE:
        return ""
    return f"its overlap (IoU) with what stands out from the garment's white is only {overlap:.2f}"


def warp_against_garment(
    warped: np.ndarray, warped_mask: np.ndarray, garment: np.ndarray, silhouette: np.ndarray
) -> str:
    """What is odd if a warped garment has other colours than its garment, else "".

    Pictures (H, W, 3) uint8, masks (H, W) bool; the pictures may differ in size.
    """
    if not warped_mask.any() or not silhouette.any():
        return ""
    worn = warped[warped_mask].mean(axis=0)
    sold = garment[silhouette].mean(axis=0)
    distance = float(np.linalg.norm(worn - sold))
    if distance <= FAR_COLOUR:
        return ""
    return (
        f"its mean colour is {distance:.0f} levels from that of its garment: perhaps another "
        "garment's"
    )


def _labels_at(joint: np.ndarray, parse: np.ndarray) -> np.ndarray:
    """The labels around a joint."""
    height, width = parse.shape
    radius = max(1, round(RADIUS * height))
    row = min(height - 1, int(joint[1] * height))
    column = min(width - 1, int(joint[0] * width))
    rows = slice(max(0, row - radius), row + radius + 1)
    return parse[rows, max(0, column - radius) : column + radius + 1]


def _nose_off_head(joints: np.ndarray, parse: np.ndarray) -> str:
    """The label at the nose where that is no part of a head, else ""."""
    if not joints[0, 2]:
        return ""
    near = _labels_at(joints[0], parse)
    if np.isin(near, _HEAD).any():
        return ""
    return labels.NAMES[np.bincount(near.ravel()).argmax()]
