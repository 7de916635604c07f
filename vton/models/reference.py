"""A folder of reference tensors, and what an architecture says to be checked against it (`vton
verify`).

The folder holds config.json (with the architecture under `model`), weights_<part>.safetensors,
inputs.safetensors and outputs.safetensors; both of the latter may be split into further files
(inputs_<part>.safetensors and so on). An architecture's `reference.py` defines

    recompute(reference: Reference) -> dict[str, Tensor]     every tensor of the outputs, by our code
    kind(name: str) -> Kind                                  how a tensor of that name is to be compared
"""

from __future__ import annotations

import json
from collections import ChainMap
from enum import Enum
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from vton.config import ObjectiveConfig
from vton.diffusion.objective import Objective
from vton.models.resampler import Resampler
from vton.weights.pretrained import WeightsError, read_safetensors


class Kind(Enum):
    """How an output is compared. Errors are of the largest value of the expected tensor where they
    are relative.
    """

    CALL = "single call"  # absolute
    STEPS = "several steps"  # relative: errors grow over the steps
    GRADIENT = "gradient"  # relative
    EXACT = "exact"  # integers and counts: equal
    BYTES = "bytes"  # a computed picture in 0..255: float32 sums of another order may round to the neighbour
    CONTROL = "control"  # a known mistake, recorded to be avoided: must differ


class Reference:
    """One folder, its floating-point tensors in `dtype` on `device`."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype = torch.float32):
        self.folder, self.device, self.dtype = Path(folder), device, dtype

    @cached_property
    def config(self) -> dict:
        """Raises WeightsError if config.json is absent, broken or names no model."""
        path = self.folder / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"{path}: not a readable reference configuration ({error})."
            ) from None
        if not isinstance(config, dict) or not isinstance(config.get("model"), str):
            raise WeightsError(f"{path} names no architecture under 'model'.")
        return config

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        return dict(ChainMap(*map(self._read, self._files("inputs"))))

    @cached_property
    def expected(self) -> dict[str, Tensor]:
        """As stored: on the CPU, in the reference's own precision."""
        return dict(
            ChainMap(*(read_safetensors(self.folder / name) for name in self._files("outputs")))
        )

    def weights(self, part: str) -> dict[str, Tensor]:
        """weights_<part>.safetensors."""
        return self._read(f"weights_{part}.safetensors")

    def _files(self, kind: str) -> list[str]:
        """Names of the files of a kind; the plain name, for its error message, if there are none."""
        whole, parts = (
            f"{kind}.safetensors",
            sorted(path.name for path in self.folder.glob(f"{kind}_*.safetensors")),
        )
        return [whole, *parts] if (self.folder / whole).exists() or not parts else parts

    def _read(self, name: str) -> dict[str, Tensor]:
        tensors = read_safetensors(self.folder / name)
        return {
            key: tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)
            for key, tensor in tensors.items()
        }


def read_objective(scheduler: dict, **settings) -> Objective:
    """The objective of a diffusers scheduler's configuration, with further settings of ours."""
    return Objective(
        ObjectiveConfig(
            schedule=scheduler["beta_schedule"],
            train_timesteps=scheduler["num_train_timesteps"],
            beta_start=scheduler["beta_start"],
            beta_end=scheduler["beta_end"],
            zero_terminal_snr=scheduler.get("rescale_betas_zero_snr", False),
            prediction=scheduler.get("prediction_type", "epsilon"),
            **settings,
        )
    )


def read_resampler(settings: dict) -> Resampler:
    """A fresh Resampler from IP-Adapter's names for its settings."""
    return Resampler(
        width=settings["dim"],
        depth=settings["depth"],
        heads=settings["heads"],
        head_width=settings["dim_head"],
        queries=settings["num_queries"],
        input_width=settings["embedding_dim"],
        output_width=settings["output_dim"],
        factor=settings["ff_mult"],
    )
