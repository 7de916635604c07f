"""LaDI-VTON's released warping module, in and out.

One file, {"tps": state, "refinement": state, ...optimizers, "epoch"}: warping_vitonhd.pth or
warping_dresscode.pth of https://github.com/miccunifi/ladi-vton/releases (CC BY-NC 4.0).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vton.config import ExperimentConfig
from vton.data.sample import JOINTS
from vton.errors import UserError
from vton.models.warp.config import RefinementConfig, TpsConfig
from vton.models.warp.tps import ThinPlateSpline
from vton.weights.pretrained import read_checkpoint
from vton.weights.published import PublishedWeights, write_torch

# Beginnings of names by section, theirs and ours.
TPS_NAMES = {
    "extractionA.model.": "network.tps.garment_features.",
    "extractionB.model.": "network.tps.person_features.",
    "loc_net.regression.": "network.tps.regression.",
}
REFINEMENT_NAMES = {
    "inc.double_conv.": "network.refinement.first.",
    "down1.maxpool_conv.1.double_conv.": "network.refinement.down.0.",
    "down2.maxpool_conv.1.double_conv.": "network.refinement.down.1.",
    "down3.maxpool_conv.1.double_conv.": "network.refinement.down.2.",
    "down4.maxpool_conv.1.double_conv.": "network.refinement.down.3.",
    "up1.conv.double_conv.": "network.refinement.up.0.",
    "up2.conv.double_conv.": "network.refinement.up.1.",
    "up3.conv.double_conv.": "network.refinement.up.2.",
    "up4.conv.double_conv.": "network.refinement.up.3.",
    "outc.conv.": "network.refinement.last.",
}
SECTIONS = {"tps": TPS_NAMES, "refinement": REFINEMENT_NAMES}
SPLINE = "gridGen."  # constants of the lattice and the size, which follow from the configuration


# ---- in ----


def read_published(path: Path) -> PublishedWeights:
    """The file's two networks.

    Raises UserError for other files, other person inputs and other sizes.
    """
    content = read_checkpoint(path)
    state, extra = {"network.refined": torch.tensor(True)}, {}
    for section in SECTIONS:
        tensors = content.get(section) if isinstance(content, dict) else None
        if not isinstance(tensors, dict) or not tensors:
            raise UserError(
                f"{path}: not LaDI-VTON's warping module; expected a mapping with tps and "
                "refinement."
            )
        for name, tensor in tensors.items():
            if name.startswith(SPLINE):
                extra[f"{section}.{name}"] = tensor
            else:
                state[name_in_ours(section, name, path)] = tensor
    check_person_input(state, path)
    check_spline(extra, path)
    return PublishedWeights(state, ["data.mask_source=derive", "data.mask_rule=ladi"], extra)


def name_in_ours(section: str, name: str, path: Path) -> str:
    """Our name of a published tensor.

    Raises UserError for a name that the released classes do not have.
    """
    for theirs, ours in SECTIONS[section].items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    raise UserError(
        f"{path}: {section} holds {name}, which LaDI-VTON's warping module does not have."
    )


def check_person_input(state: dict[str, Tensor], path: Path) -> None:
    first = state.get("network.tps.person_features.0.weight")
    if first is not None and first.shape[1] != 3 + JOINTS:
        raise UserError(
            f"{path} reads {first.shape[1] - 3} channels of pose beside the person, here they are "
            f"{JOINTS} heat maps; the variant that reads DensePose coordinates is not supported."
        )


def check_spline(stored: dict[str, Tensor], path: Path) -> None:
    """Raise UserError unless the file's spline has the lattice and the size of ours."""
    expected = spline_constants(TpsConfig())
    for name, tensor in stored.items():
        own = expected.get(name)
        same_shape = own is not None and own.shape == tensor.shape
        if not same_shape or not torch.allclose(own, tensor.float(), atol=1e-3):
            raise UserError(
                f"{path}: {name} {tuple(tensor.shape)} is not that of a 5x5 lattice at 256x192."
            )


def spline_constants(config: TpsConfig) -> dict[str, Tensor]:
    """What the file repeats of the spline: two matrices, and the zeros beside the points."""
    spline = ThinPlateSpline(*config.size, config.points)
    return {
        f"tps.{SPLINE}inverse_kernel": spline.inverse,
        f"tps.{SPLINE}padding_matrix": torch.zeros(3, 2),
        f"tps.{SPLINE}target_coordinate_repr": spline.evaluation,
    }


# ---- out ----


def write_published(
    target: Path, state: dict[str, Tensor], config: ExperimentConfig, extra: dict[str, Tensor]
) -> None:
    """The two sections again, as a torch file.

    Raises UserError for networks of another shape than the released ones.
    """
    model = config.model
    released_tps = TpsConfig(order_weight=model.tps.order_weight)
    if model.tps != released_tps or model.refinement != RefinementConfig():
        raise UserError(
            f"{target}: LaDI-VTON's format holds its own networks only (preset=paper), and this "
            "run has other model.tps or model.refinement settings; use the run folder's "
            "weights.safetensors."
        )
    content: dict[str, dict[str, Tensor]] = {section: {} for section in SECTIONS}
    for name, tensor in (spline_constants(model.tps) | extra).items():
        section, _, rest = name.partition(".")
        content[section][rest] = tensor.contiguous()
    for section, names in SECTIONS.items():
        for name, tensor in state.items():
            for theirs, ours in names.items():
                if name.startswith(ours):
                    content[section][theirs + name.removeprefix(ours)] = tensor
    write_torch(target, content)
