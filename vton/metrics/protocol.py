"""Named, versioned evaluation protocols: every number that decides what a metric measures stands here.

`exact` compares at the size of generation: the truth was resized once (vton.data.transforms), the prediction was
rounded once to uint8 and stored as PNG, nothing is pasted back. SSIM: torchmetrics' definition, RGB, data range 1,
Gaussian window, mean over the whole picture. FID and KID: 2048 pool features, torchmetrics' antialiased bilinear resize
of the uint8 pictures, reference = the person pictures of the test split, the same in both orders.

A change of any value here changes published numbers: raise `version`, and tables will refuse to mix the two.
"""

from __future__ import annotations

from dataclasses import dataclass

from vton.config import ConfigError, nearest


@dataclass(frozen=True)
class Protocol:
    name: str
    version: int
    ssim_sigma: float = 1.5  # px; torchmetrics derives an 11x11 window from it
    psnr_cap: float = 100.0  # dB, reported for identical pictures; one grey level in one pixel is 93.8 dB at 128x96
    dists_side: int = 256  # px; larger pictures are reduced to this shorter side, as DISTS' authors do
    inception_side: int = 299  # px; what the pretrained extractor expects
    random_inception_side: int = 149  # px; filters never trained have no native scale, and this costs a quarter
    kid_degree: int = 3  # of the polynomial kernel (x.y / d + 1)^degree
    kid_seed: int = 0  # of the generator that draws KID's subsets
    weights_seed: int = 0  # of the fixed random weights


PROTOCOLS = {"exact": Protocol("exact", version=1)}


def protocol(name: str) -> Protocol:
    """The protocol of that name. Raises ConfigError for an unknown one."""
    if name not in PROTOCOLS:
        raise ConfigError(f"eval.protocol={name}: no such protocol. {nearest(name, list(PROTOCOLS))}")
    return PROTOCOLS[name]
