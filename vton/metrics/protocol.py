"""Named, versioned evaluation protocols: every number that decides what a metric measures.

`exact` compares at the size of generation: the truth was resized once (vton.data.transforms), the
prediction was rounded once to uint8 and stored as PNG, nothing is pasted back. SSIM: torchmetrics'
definition, RGB, data range 1, Gaussian window, mean over the whole picture. FID and KID: 2048 pool
features, torchmetrics' antialiased bilinear resize of the uint8 pictures, reference = the person
pictures of the test split, the same in both orders.

The `*_compat` protocols repeat what the scripts of LaDI-VTON, CatVTON and HR-VITON do to pictures
before they measure them, so that a number can be compared with their papers'. They start from the
stored truth, not from the resized one. What the scripts leave open is set here: a prediction of
another size than the protocol's comparison is brought to it by the filter that the truth gets;
PSNR, DISTS and the garment region are taken from the same pictures.

A change of any value here changes published numbers: raise `version`, and tables will refuse to mix
the two.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

from vton.config import ConfigError, EvalConfig, Metric, nearest

# Those of any pictures; "iou" compares silhouettes, which only a model reports.
METRICS = tuple(name for name in get_args(Metric) if name != "iou")


@dataclass(frozen=True)
class Protocol:
    """The settings of one evaluation."""

    name: str
    version: int

    # How pictures are prepared.
    # Height, width of the comparison in px; None = the predictions' own.
    size: tuple[int, int] | None = None
    # Pillow's filter to that size, rounded once.
    resample: Literal["bicubic", "bilinear", "lanczos"] = "bicubic"
    # Pillow's quality (chroma 4:2:0) that the resized truth is compressed with; 0 = not.
    truth_jpeg: int = 0
    prediction_jpeg: int = 0
    repaint: bool = False  # paste the person's own picture outside the agnostic mask
    feathered: bool = False  # repaint with a blurred mask, as CatVTON does, instead of a hard edge

    # How metrics are computed.
    ssim_sigma: float = 1.5  # px; torchmetrics derives an 11x11 window from it
    # scikit-image on Pillow's luminance, borders left out, instead of torchmetrics on RGB.
    ssim_grey: bool = False
    # dB of identical pictures; one grey level in one pixel is 93.8 dB at 128x96.
    psnr_cap: float = 100.0
    lpips_net: Literal["alex", "vgg", "squeeze"] = "alex"
    # px of the square that pictures are squeezed into for LPIPS (Pillow, bilinear); 0 = not.
    lpips_side: int = 0
    # px; larger pictures are reduced to this shorter side, as DISTS' authors do.
    dists_side: int = 256
    # FID, KID: the truth as compared, or the stored picture.
    reference: Literal["resized", "original"] = "resized"
    inception_resize: Literal["torchmetrics", "clean_fid", "torch_fidelity"] = "torchmetrics"
    inception_side: int = 299  # px; what the pretrained extractor expects
    # px; filters never trained have no native scale, and this costs a quarter.
    random_inception_side: int = 149
    kid_subsets: int = 100
    kid_subset_size: int = 1000  # pictures; at most as many as either set has
    kid_degree: int = 3  # of the polynomial kernel (x.y / d + 1)^degree
    kid_seed: int = 0  # of the generator that draws KID's subsets
    weights_seed: int = 0  # of the fixed random weights
    # Width of a garment's edge, as a share of the picture's shorter side: 12 px of 384.
    edge_share: float = 1 / 32

    @property
    def from_originals(self) -> bool:
        """Whether comparison starts from the truth as it is stored, not as the data loads it."""
        return self.size is not None or self.resample != "bicubic" or self.reference == "original"


EXACT_PROTOCOL = Protocol("exact", version=1)
LADI_COMPAT = Protocol(
    "ladi_compat",
    version=1,
    size=(512, 384),
    resample="bilinear",
    prediction_jpeg=95,
    reference="original",
    inception_resize="clean_fid",
)
CATVTON_COMPAT = Protocol(
    "catvton_compat",
    version=1,
    size=(512, 384),
    resample="lanczos",
    truth_jpeg=75,
    prediction_jpeg=75,
    repaint=True,
    feathered=True,
    lpips_net="squeeze",
    inception_resize="clean_fid",
)
HRVITON_COMPAT = Protocol(
    "hrviton_compat",
    version=1,
    resample="bilinear",
    ssim_grey=True,
    lpips_side=128,
    reference="original",
    inception_resize="torch_fidelity",
)
PROTOCOLS = {
    used.name: used for used in (EXACT_PROTOCOL, LADI_COMPAT, CATVTON_COMPAT, HRVITON_COMPAT)
}
# What the configuration may change in a protocol.
CHANGEABLE = ("size", "repaint", "lpips_net", "kid_subsets", "kid_subset_size")


def protocol(name: str) -> Protocol:
    """The protocol of that name. Raises ConfigError for an unknown one."""
    if name not in PROTOCOLS:
        raise ConfigError(
            f"eval.protocol={name}: no such protocol. {nearest(name, list(PROTOCOLS))}"
        )
    return PROTOCOLS[name]


def configured(config: EvalConfig) -> Protocol:
    """The configured protocol, with the settings that `config` changes; `changes` names them."""
    changed = {}
    for name in CHANGEABLE:
        value = getattr(config, name)
        if value is not None:
            changed[name] = value
    return replace(protocol(config.protocol), **changed)


def changes(used: Protocol) -> list[str]:
    """`setting=value` wherever a protocol is not what its name says.

    Rows carry these, and tables refuse to mix them.
    """
    named = protocol(used.name)
    changed = []
    for setting in fields(Protocol):
        value = getattr(used, setting.name)
        if value != getattr(named, setting.name):
            changed.append(f"{setting.name}={value}")
    return changed
