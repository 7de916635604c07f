"""LaDI-VTON's released warping module: one file, {"tps": state, "refinement": state, ...optimizers,
"epoch"}.

https://github.com/miccunifi/ladi-vton/releases, warping_vitonhd.pth and warping_dresscode.pth (CC
BY-NC 4.0).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vton.config import ExperimentConfig
from vton.data.sample import JOINTS
from vton.files import replacing
from vton.models.warp.config import RefinementConfig, TpsConfig
from vton.models.warp.tps import ThinPlateSpline
from vton.weights.pretrained import Published, WeightsError, read_checkpoint

PREFIXES = {  # theirs -> ours
    "tps": {
        "extractionA.model.": "network.tps.garment_features.",
        "extractionB.model.": "network.tps.person_features.",
        "loc_net.regression.": "network.tps.regression.",
    },
    "refinement": {
        "inc.double_conv.": "network.refinement.first.",
        **{
            f"down{i}.maxpool_conv.1.double_conv.": f"network.refinement.down.{i - 1}."
            for i in range(1, 5)
        },
        **{f"up{i}.conv.double_conv.": f"network.refinement.up.{i - 1}." for i in range(1, 5)},
        "outc.conv.": "network.refinement.last.",
    },
}
SPLINE = "gridGen."  # constants of the lattice and the size, which follow from the configuration


def read_published(path: Path) -> Published:
    """The file's two networks. Raises WeightsError for other files, other person inputs and other
    sizes.
    """
    content = read_checkpoint(path)
    sections = {name: content.get(name) if isinstance(content, dict) else None for name in PREFIXES}
    if not all(isinstance(section, dict) and section for section in sections.values()):
        raise WeightsError(
            f"{path}: not LaDI-VTON's warping module; expected a mapping with tps and refinement."
        )
    state, extra = {"network.refined": torch.tensor(True)}, {}
    for section, entries in sections.items():
        for name, tensor in entries.items():
            if name.startswith(SPLINE):
                extra[f"{section}.{name}"] = tensor
            else:
                state[own_name(section, name, path)] = tensor
    first = state.get("network.tps.person_features.0.weight")
    if first is not None and first.shape[1] != 3 + JOINTS:
        raise WeightsError(
            f"{path} reads {first.shape[1] - 3} channels of pose beside the person, here they are {JOINTS} heat maps; "
            "the variant that reads DensePose coordinates is not supported."
        )
    check_spline(extra, path)
    return Published(state, ["data.mask_source=derive", "data.mask_rule=ladi"], extra)


def own_name(section: str, name: str, path: Path) -> str:
    """Our name of a published tensor. Raises WeightsError for a name the released classes do not
    have.
    """
    for theirs, ours in PREFIXES[section].items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    raise WeightsError(
        f"{path}: {section} holds {name}, which LaDI-VTON's warping module does not have."
    )


def published_name(name: str) -> tuple[str, str] | None:
    """Section and name of one of our tensors; None for what the published format leaves out."""
    for section, prefixes in PREFIXES.items():
        for theirs, ours in prefixes.items():
            if name.startswith(ours):
                return section, theirs + name.removeprefix(ours)
    return None


def spline_constants(config: TpsConfig) -> dict[str, Tensor]:
    """What the published file repeats of the spline: its two matrices and the zeros they are
    applied to.
    """
    spline = ThinPlateSpline(*config.size, config.points)
    constants = {
        "inverse_kernel": spline.inverse,
        "padding_matrix": torch.zeros(3, 2),
        "target_coordinate_repr": spline.evaluation,
    }
    return {f"tps.{SPLINE}{name}": tensor for name, tensor in constants.items()}


def check_spline(stored: dict[str, Tensor], path: Path) -> None:
    """Raise WeightsError unless the file's spline is the one computed here: same lattice, same
    size.
    """
    expected = spline_constants(TpsConfig())
    for name, tensor in stored.items():
        own = expected.get(name)
        if (
            own is None
            or own.shape != tensor.shape
            or not torch.allclose(own, tensor.float(), atol=1e-3)
        ):
            raise WeightsError(
                f"{path}: {name} {tuple(tensor.shape)} is not that of a 5x5 lattice at 256x192."
            )


def write_published(
    target: Path, state: dict[str, Tensor], config: ExperimentConfig, extra: dict[str, Tensor]
) -> None:
    """The two sections again, as a torch file. Raises WeightsError for networks of another shape
    than the released.
    """
    model, released = (
        config.model,
        (TpsConfig(order_weight=config.model.tps.order_weight), RefinementConfig()),
    )
    if (model.tps, model.refinement) != released:
        raise WeightsError(
            f"{target}: LaDI-VTON's format holds its own networks only (preset=paper), and this run has other "
            "model.tps or model.refinement settings; use the run folder's weights.safetensors."
        )
    content: dict[str, dict[str, Tensor]] = {section: {} for section in PREFIXES}
    for name, tensor in (spline_constants(model.tps) | extra).items():
        section, _, rest = name.partition(".")
        content[section][rest] = tensor.contiguous()
    for name, tensor in state.items():
        if place := published_name(name):
            content[place[0]][place[1]] = tensor
    with replacing(target) as temporary:
        torch.save(content, temporary)
