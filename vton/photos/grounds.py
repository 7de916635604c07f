"""The garment mask backend `auto`: a garment on a plain ground.

A white ground is told by its colour, as for data sets without garment masks. Any other plain one,
evenly lit or not, is fitted by a smooth surface through the picture's border; what differs from it
starts a GrabCut (Rother et al., SIGGRAPH 2004). A ground that the surface does not fit, a wooden
floor or clutter, is refused.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from vton.data.images import Origin, silhouette_on_white
from vton.data.sample import DataError
from vton.photos.backends import OWN_LICENCE, Facts
from vton.photos.errors import PhotoError
from vton.photos.extras import package

BORDER = 0.03  # width of the border that the surface goes through, of the picture's shorter side
UNEVEN = 8.0  # grey levels the border may differ from it; plain grounds have 2.6 at most, floors 18
SIDE = 512  # px; GrabCut works on a picture reduced to this longer side
FAR, NEAR = 6.0, 2.5  # standard deviations of the ground from which a pixel is cloth, may be cloth
ROUNDS = 4  # of GrabCut
PLAUSIBLE = (0.02, 0.95)  # share of the picture that a garment fills
TOUCHES = 0.35  # share of the border that a garment may cover


class Grounds:
    facts = Facts("auto", "vton", OWN_LICENCE, "")

    def __init__(self, where: str = ""):
        self.where = where

    def silhouette(self, picture: Image.Image) -> np.ndarray:
        """(H, W) bool. Raises PhotoError for a ground that is not plain."""
        try:
            return silhouette_on_white(picture, Path(), Origin("", "", ""))
        except DataError:
            pass
        ratio = min(1.0, SIDE / max(picture.size))
        size = (max(16, round(picture.width * ratio)), max(16, round(picture.height * ratio)))
        reduced = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
        mask = on_plain_ground(reduced)
        soft = Image.fromarray(mask.astype(np.uint8) * 255)
        grown = np.asarray(soft.resize(picture.size, Image.Resampling.BILINEAR))
        return grown >= 128


def on_plain_ground(pixels: np.ndarray) -> np.ndarray:
    """(H, W) bool silhouette in (H, W, 3) uint8. Raises PhotoError."""
    lab = _lab(pixels)
    ground, spread = fitted_ground(lab)
    if spread.max() > UNEVEN:
        raise PhotoError(
            "garment",
            f"the garment does not lie on a plain ground (it varies by {spread.max():.0f} grey "
            f"levels, {UNEVEN:.0f} are allowed). Photograph it on a plain sheet, or use "
            "--garment-mask network:FILE.",
        )
    noise = np.maximum(spread, 1.0)
    away = np.sqrt((((lab - ground) / noise) ** 2).sum(2))
    sure = ndimage.binary_opening(away > FAR, iterations=2)
    if not sure.any():
        raise PhotoError(
            "garment",
            "nothing in the garment's photo differs from its ground. Use a ground of another "
            "colour than the garment.",
        )
    mask = _grabcut(pixels, sure, away)
    regions, count = ndimage.label(mask)
    if count:
        areas = np.bincount(regions.ravel())
        areas[0] = 0
        mask = np.isin(regions, np.flatnonzero(areas >= 0.05 * areas.max()))
    mask = ndimage.binary_fill_holes(mask)
    if not PLAUSIBLE[0] < mask.mean() < PLAUSIBLE[1]:
        raise PhotoError(
            "garment",
            f"the garment fills {mask.mean():.0%} of its photo, which is hardly possible. Show "
            "the whole garment with some ground around it.",
        )
    return mask


def fitted_ground(lab: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A quadratic surface through the border's pixels, (H, W, 3), and their spread around it (3,).

    The garment may reach into the border: pixels far from a first fit do not count in the second.
    """
    height, width = lab.shape[:2]
    wide = max(2, round(BORDER * min(height, width)))
    border = np.ones((height, width), bool)
    border[wide:-wide, wide:-wide] = False
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], -1)
    used = border.copy()
    # Start from the median, which a garment on less than half of the border does not move.
    surface = np.broadcast_to(np.median(lab[border], 0), lab.shape)
    for _ in range(3):
        distance = np.abs(lab - surface).max(2)
        limit = max(6.0, 3 * 1.48 * float(np.median(distance[border])))
        used = border & (distance <= limit)
        if used.sum() < (1 - TOUCHES) * border.sum():
            used = border
        weights, *_ = np.linalg.lstsq(terms[used], lab[used], rcond=None)
        surface = terms @ weights
    return surface, np.sqrt(((lab[used] - surface[used]) ** 2).mean(0))


def _grabcut(pixels: np.ndarray, sure: np.ndarray, away: np.ndarray) -> np.ndarray:
    cv2 = package("cv2", "the garment mask backend auto, on a ground that is not white,")
    state = np.full(sure.shape, cv2.GC_PR_BGD, np.uint8)
    state[away > NEAR] = cv2.GC_PR_FGD
    state[ndimage.binary_erosion(sure, iterations=3)] = cv2.GC_FGD
    frame = np.zeros_like(sure)
    frame[:2], frame[-2:], frame[:, :2], frame[:, -2:] = True, True, True, True
    state[frame & (away <= NEAR)] = cv2.GC_BGD
    if not (state == cv2.GC_FGD).any() or not (state == cv2.GC_BGD).any():
        return sure
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    bgr = np.ascontiguousarray(pixels[..., ::-1])
    cv2.grabCut(bgr, state, None, *models, ROUNDS, cv2.GC_INIT_WITH_MASK)
    return (state == cv2.GC_FGD) | (state == cv2.GC_PR_FGD)


def _lab(pixels: np.ndarray) -> np.ndarray:
    """CIE Lab, in units of about one grey level: where distances are those that one sees."""
    from skimage.color import rgb2lab

    return rgb2lab(pixels) * np.float64([2.55, 1.6, 1.6])
