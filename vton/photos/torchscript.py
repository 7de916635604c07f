"""The DensePose backend `torchscript`: a DensePose network as one TorchScript file.

Made for `densepose_r50_fpn_dl.torchscript` of hr16/DensePose-TorchScript-with-hint-image (commit
9822aed612fd3c413914701146bbdd7503338898). Such a file takes a picture (3, H, W) of uint8 BGR and
gives boxes (n, 4), coarse and fine segmentations (n, 2, h, w) and (n, 25, h, w), and U and V.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from vton.data import densepose
from vton.errors import UserError, one_line
from vton.files import file_digest
from vton.photos.backends import Facts

SOURCE = (
    "https://huggingface.co/hr16/DensePose-TorchScript-with-hint-image/resolve/"
    "9822aed612fd3c413914701146bbdd7503338898/densepose_r50_fpn_dl.torchscript"
)


class TorchScript:
    def __init__(self, where: str = ""):
        self.path = Path(where).expanduser()
        if not where or not self.path.is_file():
            raise UserError(
                f"the DensePose backend torchscript needs a file: densepose=torchscript:FILE"
                f"{f' ({where} is none)' if where else ''}. Fetch it with "
                f"`curl -LO {SOURCE}`."
            )
        try:
            self.network = torch.jit.load(self.path, map_location="cpu").eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(
                f"{self.path} cannot be loaded: {one_line(error)}. It must be a TorchScript file; "
                "torchvision's compiled operators are needed too."
            ) from None

    @cached_property
    def facts(self) -> Facts:
        licence = "CC BY-SA 3.0 by its source; trained on DensePose-COCO"
        return Facts("torchscript", str(self.path), licence, file_digest(self.path))

    @torch.no_grad()
    def parts(self, picture: Image.Image) -> np.ndarray:
        try:
            return self._parts(picture)
        except Exception as error:
            raise UserError(
                f"{self.path} does not read a picture as DensePose's files do: {one_line(error)}."
            ) from None

    def _parts(self, picture: Image.Image) -> np.ndarray:
        array = np.ascontiguousarray(np.asarray(picture)[..., ::-1].transpose(2, 0, 1))
        boxes, coarse, fine, *_ = self.network(torch.from_numpy(array))
        parts = np.zeros((picture.height, picture.width), np.uint8)
        # The largest person last, so that it lies over others.
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        for person in areas.argsort().tolist():
            _paint(parts, boxes[person].tolist(), coarse[person], fine[person])
        return parts


def _paint(parts: np.ndarray, box: list[float], coarse: torch.Tensor, fine: torch.Tensor) -> None:
    """Part ids of one person: the likeliest part where the coarse map says body.

    box: left, top, right, bottom in pixels. coarse: (2, h, w), fine: (25, h, w).
    """
    height, width = parts.shape
    left, top = max(int(box[0]), 0), max(int(box[1]), 0)
    right, bottom = min(round(box[2]), width), min(round(box[3]), height)
    size = (bottom - top, right - left)
    if min(size) < 1:
        return
    body = F.interpolate(coarse[None].float(), size, mode="bilinear")[0].argmax(0) > 0
    ids = F.interpolate(fine[None].float(), size, mode="bilinear")[0].argmax(0)
    ids = (ids * body).clamp(0, densepose.COUNT - 1).to(torch.uint8).numpy()
    window = parts[top:bottom, left:right]
    window[ids > 0] = ids[ids > 0]
