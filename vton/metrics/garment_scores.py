"""Metrics of one prediction at a time, and the networks that they take.

They are those of IMAGDressing's table, VTON-IQA, and the likeness of garment crops: M-DINO and
M-CLIP-I, the cosine of DINOv2's or CLIP's features between the shop's garment and the prediction's,
which OmniTry's benchmark introduced (arXiv 2508.13632). No truth is needed for it, only to know
where the prediction shows the garment.

Networks are plain functions, so that anyone's can be plugged in:
Extractors(config, garment_networks=GarmentNetworks(face=...)). Those whose weights lie in the
folder of metric networks are loaded from it:

    alexnet-owt-7be5be79.pth    lpips   LPIPS
    clip-vit-base-patch32/      clip    CLIP ViT-B/32 in the hub's layout
    stable-diffusion-2-1/       dift    unet, vae, text_encoder, tokenizer, scheduler, likewise
    image_reward/               reward  ImageReward.pt, med_config.json and BERT's vocab.txt
    vton_iqa/                   iqa     config.json and model.safetensors of VTON-IQA's release

Human parsers, pose estimators and face embedders come with no package used here and have to be
plugged in. Without a parser the garment is cut out of a prediction where the truth shows it; such a
number is called `<metric>_true_mask`. There is no other substitute for a network: metrics whose
network is missing are skipped, and rows say why.

There is no substitute for a score either. MP-LPIPS is not defined for a garment so thin in the
shop's picture that no point of its grid lies on it. Such a pair is left out of that mean for every
method alike, and rows name it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vton.metrics import garment_driven, prepare
from vton.metrics.garment_driven import SSIM_WINDOW, MetricError
from vton.metrics.tally import Region
from vton.metrics.target import Target
from vton.weights.metric_networks import CLIP, DIFT, FILES, IMAGE_REWARD, VTON_IQA

if TYPE_CHECKING:
    from vton.metrics.vision import Vision


class Needs(NamedTuple):
    """What a garment-driven metric is about and takes."""

    region: Region
    networks: tuple[str, ...]  # fields of GarmentNetworks; "parser" is optional


NEEDS = {
    "cami_u": Needs("garment", ("parser",)),
    "cami_s": Needs("garment", ("parser", "pose", "face", "clip")),
    "mp_lpips": Needs("garment", ("parser", "dift", "lpips")),
    "image_reward": Needs("image", ("reward",)),
    "vton_iqa": Needs("image", ("iqa",)),
    "m_dino": Needs("garment", ("parser", "m_dino")),
    "m_clip_i": Needs("garment", ("parser", "m_clip_i")),
}
# Where a network lies in the folder of metric networks.
STORED_NETWORKS = {
    "lpips": FILES["alex"][0],
    "clip": CLIP,
    "dift": DIFT,
    "reward": IMAGE_REWARD,
    "iqa": VTON_IQA,
}


@dataclass
class GarmentNetworks:
    """Functions of one picture, uint8 RGB (H, W, 3); None where a network is absent."""

    # the garment's mask, bool (H, W)
    parser: Callable[[NDArray], NDArray] | None = None
    # the drawn pose, uint8 (h, w, 3), black where nothing is drawn
    pose: Callable[[NDArray], NDArray] | None = None
    # the embedding of the first face, None without one
    face: Callable[[NDArray], NDArray | Tensor | None] | None = None
    # with a prompt: features of the prompt and of the picture
    clip: Callable[[NDArray, str], tuple[Tensor, Tensor]] | None = None
    # features (1, C, h, w) of a 512 x 512 picture
    dift: Callable[[NDArray], Tensor] | None = None
    # of two batches (N, 3, h, w) in [0, 1]: distances (N,)
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None
    # with a prompt: ImageReward
    reward: Callable[[NDArray, str], float] | None = None
    # of person, garment and picture: VTON-IQA
    iqa: Callable[[NDArray, NDArray, NDArray], float] | None = None
    # features (D,) of a garment's crop; DINOv2's and CLIP's if nothing else is given
    m_dino: Callable[[NDArray], Tensor] | None = None
    m_clip_i: Callable[[NDArray], Tensor] | None = None


def with_stored(
    networks: GarmentNetworks, metrics: Sequence[str], folder: Path | None, device: torch.device
) -> GarmentNetworks:
    """`networks`, and from the folder those that the metrics need besides.

    Raises UserError naming a broken file.
    """
    if folder is None:
        return networks
    paths = {}
    for metric in metrics:
        for name in NEEDS[metric].networks:
            absent = getattr(networks, name) is None
            if absent and name in STORED_NETWORKS and (folder / STORED_NETWORKS[name]).exists():
                paths[name] = folder / STORED_NETWORKS[name]
    if not paths:
        return networks
    from vton.metrics.garment_networks import LOADERS  # imports diffusers and transformers

    loaded = {name: LOADERS[name](path, device) for name, path in paths.items()}
    return replace(networks, **loaded)


class GarmentScores:
    """The garment-driven metrics, of one prediction at a time.

    metrics: those that can be computed; absent: the others, with the networks they lack
    """

    def __init__(self, asked: Sequence[str], networks: GarmentNetworks, worn_masks: bool = False):
        """worn_masks: whether targets say where the predictions show the garment."""
        self.networks = networks
        self.worn_masks = worn_masks
        self.metrics: list[str] = []
        self.absent: dict[str, str] = {}
        for metric in asked:
            lacking = []
            for name in NEEDS[metric].networks:
                if name != "parser" and getattr(networks, name) is None:
                    lacking.append(_described(name))
            if lacking:
                self.absent[metric] = f"needs {', '.join(lacking)}"
            else:
                self.metrics.append(metric)

    def name(self, metric: str) -> str:
        """How the metric is called in rows."""
        finds = self.networks.parser is not None or self.worn_masks
        by_true_mask = "parser" in NEEDS[metric].networks and not finds
        return f"{metric}_true_mask" if by_true_mask else metric

    def measure(
        self, target: Target, prediction: Tensor
    ) -> tuple[dict[str, float], dict[str, str]]:
        """Scores of a prediction, uint8 (3, H, W), and why others are not defined for the pair.

        Both are by metric. The garment's metrics are in neither where the truth does not show the
        garment, or where there is neither a parser nor a mask to find it.
        """
        scores: dict[str, float] = {}
        undefined: dict[str, str] = {}
        if not self.metrics:
            return scores, undefined
        picture = _array(prediction.cpu())
        if "image_reward" in self.metrics:
            scores["image_reward"] = self.networks.reward(picture, target.prompt)
        if "vton_iqa" in self.metrics:
            person, garment = _array(target.person), _array(target.garment)
            scores["vton_iqa"] = self.networks.iqa(person, garment, picture)

        about_garment = [metric for metric in self.metrics if NEEDS[metric].region == "garment"]
        shown = target.garment_mask is None or bool(target.garment_mask.any())
        worn = self._worn(picture, target) if about_garment and shown else None
        if worn is None:
            return scores, undefined
        for metric in about_garment:
            try:
                scores[metric] = self._garment_score(metric, target, picture, worn)
            except MetricError as error:
                undefined[metric] = str(error)
        return scores, undefined

    def _worn(self, picture: NDArray, target: Target) -> NDArray | None:
        """Where the picture shows the garment, bool (H, W); None without a parser and a mask."""
        if self.networks.parser is not None:
            return self.networks.parser(picture)
        if target.worn_mask is not None:
            return prepare.resize_mask(target.worn_mask, picture.shape[:2])[0].numpy()
        if target.garment_mask is None:
            return None
        return prepare.resize_mask(target.garment_mask, picture.shape[:2])[0].numpy()

    def _garment_score(self, metric: str, target: Target, picture: NDArray, worn: NDArray) -> float:
        if metric == "cami_u":
            return self._cami_u(target, picture, worn)
        if metric == "cami_s":
            return self._cami_s(target, picture, worn)
        if metric in ("m_dino", "m_clip_i"):
            return self._likeness(metric, target, picture, worn)
        return self._mp_lpips(target, picture, worn)

    def _cami_u(self, target: Target, picture: NDArray, worn: NDArray) -> float:
        if not worn.any():
            return 0.0  # as the published code counts a picture it does not find
        return garment_driven.cami_u(_array(target.garment), cut_out(picture, worn))["cami_u"]

    def _cami_s(self, target: Target, picture: NDArray, worn: NDArray) -> float:
        if not worn.any():
            return 0.0
        own_face = self.networks.face(_array(target.person))
        generated_face = self.networks.face(picture)
        faces = None
        if own_face is not None and generated_face is not None:
            faces = own_face, generated_face
        scores = garment_driven.cami_s(
            _array(target.garment),
            cut_out(picture, worn),
            _array(target.pose_map),
            self.networks.pose(picture),
            faces,
            self.networks.clip(picture, target.prompt),
        )
        return scores["cami_s"]

    def _likeness(self, metric: str, target: Target, picture: NDArray, worn: NDArray) -> float:
        """Cosine of the features of two crops: the garment in the shop, and in the picture.

        Both are white outside their masks, like an in-shop picture. One without a silhouette is
        taken as it is. A picture without the garment scores 0.
        """
        if not worn.any():
            return 0.0
        garment = _array(target.garment)
        if target.silhouette is not None and target.silhouette.any():
            mask = prepare.resize_mask(target.silhouette, garment.shape[:2])[0].numpy()
            garment = cut_out(garment, mask)
        features = getattr(self.networks, metric)
        return garment_driven.cosine(features(garment), features(cut_out(picture, worn)))

    def _mp_lpips(self, target: Target, picture: NDArray, worn: NDArray) -> float:
        garment = _array(target.garment)
        silhouette = target.silhouette[0].numpy()
        return garment_driven.mp_lpips(
            garment, silhouette, picture, worn, self.networks.dift, self.networks.lpips
        )


def cut_out(picture: NDArray, mask: NDArray) -> NDArray:
    """The mask's bounding box of a picture, white outside the mask, like an in-shop picture.

    The published code gets its garments cut out already and does not say how. The box is at least
    as large as SSIM's window, unless the picture is smaller.
    """
    box = []
    for axis, length in ((1, picture.shape[0]), (0, picture.shape[1])):
        places = mask.any(axis).nonzero()[0]
        first = max(0, min(places[0], length - SSIM_WINDOW))
        last = max(places[-1], first + SSIM_WINDOW - 1)
        box.append(slice(first, last + 1))
    inside = mask[tuple(box)][..., None]
    return np.where(inside, picture[tuple(box)], np.uint8(255))


def crop_features(vision: Vision) -> Callable[[NDArray], Tensor]:
    """Features of a crop (H, W, 3) in the middle of a white square."""
    from vton.metrics.vision import white_square

    def features(crop: NDArray) -> Tensor:
        square = white_square(torch.from_numpy(crop.copy()).permute(2, 0, 1))
        with torch.inference_mode():
            return vision.features([square])[0]

    return features


def _described(network: str) -> str:
    if network in STORED_NETWORKS:
        return f"{network} ({STORED_NETWORKS[network]} in the folder of metric weights)"
    return f"{network} (to be plugged in)"


def _array(picture: Tensor) -> NDArray:
    """(3, H, W) as an array (H, W, 3)."""
    return picture.permute(1, 2, 0).contiguous().numpy()
