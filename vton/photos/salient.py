"""The garment mask backend `network`: a network for salient objects, as one ONNX file.

Any file that takes a picture (1, 3, H, W), normalised as ImageNet's, and gives a map (1, 1, h, w)
of logits or of probabilities: rembg's u2net and isnet-general-use, BiRefNet (all MIT).
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from vton.errors import UserError, one_line
from vton.files import file_digest
from vton.photos.backends import Facts
from vton.photos.errors import PhotoError
from vton.photos.extras import package

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 320  # px; where the file leaves the size open
EXAMPLE = "https://github.com/danielgatis/rembg/releases/download/v0.0.0/u2net.onnx"


class Salient:
    def __init__(self, where: str = ""):
        self.path = Path(where).expanduser()
        if not where or not self.path.is_file():
            raise UserError(
                "the garment mask backend network needs an ONNX file: --garment-mask network:FILE"
                f"{f' ({where} is none)' if where else ''}. For example `curl -LO {EXAMPLE}` (MIT)."
            )
        runtime = package("onnxruntime", "the garment mask backend network")
        try:
            self.session = runtime.InferenceSession(
                str(self.path), providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise UserError(f"{self.path} is no ONNX file: {one_line(error)}.") from None

    @cached_property
    def facts(self) -> Facts:
        licence = "that of the file; u2net, isnet and BiRefNet are MIT"
        return Facts("network", str(self.path), licence, file_digest(self.path))

    def silhouette(self, picture: Image.Image) -> np.ndarray:
        try:
            salient = self._map(picture)
        except Exception as error:
            raise UserError(
                f"{self.path} does not read a picture (1, 3, H, W) and give a map (1, 1, h, w): "
                f"{one_line(error)}."
            ) from None
        if salient.min() < 0 or salient.max() > 1:  # logits
            salient = 1 / (1 + np.exp(-salient))
        grown = Image.fromarray(salient).resize(picture.size, Image.Resampling.BILINEAR)
        mask = np.asarray(grown) >= 0.5
        if not 0.005 < mask.mean() < 0.98:
            raise PhotoError(
                "garment",
                f"{self.path.name} finds a garment on {mask.mean():.0%} of the photo. Show the "
                "whole garment with some ground around it.",
            )
        return mask

    def _map(self, picture: Image.Image) -> np.ndarray:
        """What the network gives, (h, w)."""
        (read,) = self.session.get_inputs()
        height, width = (side if isinstance(side, int) else SIDE for side in read.shape[2:])
        reduced = picture.resize((width, height), Image.Resampling.BICUBIC)
        array = (np.asarray(reduced, np.float32) / 255 - MEAN) / DEVIATION
        batch = array.astype(np.float32).transpose(2, 0, 1)[None]
        salient = np.asarray(self.session.run(None, {read.name: batch})[0], np.float32)
        return salient.reshape(salient.shape[-2:])
