"""A folder of reference tensors, and what an architecture's code says about it (`vton verify`).

The folder holds config.json (with the architecture under `model`), weights_<part>.safetensors,
inputs.safetensors and outputs.safetensors. Inputs and outputs may be split into further files
(inputs_<part>.safetensors and so on). An architecture's `reference.py` defines

    recompute(reference: Reference) -> dict[str, Tensor]    every tensor of the outputs, by our code
    kind(name: str) -> Kind                                 how a tensor of that name is compared
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vton.config import ObjectiveConfig, SamplerConfig
from vton.diffusion.denoiser import Conditions, Denoiser
from vton.diffusion.objective import Objective
from vton.diffusion.sampling import sample
from vton.diffusion.solvers import check_scheduler, make_solver
from vton.errors import UserError
from vton.models.resampler import Resampler
from vton.weights.pretrained import load_state, read_safetensors


class Kind(Enum):
    """How an output is compared. Relative errors are of the expected tensor's largest value."""

    CALL = "single call"  # absolute
    STEPS = "several steps"  # relative: errors grow over the steps
    GRADIENT = "gradient"  # relative
    EXACT = "exact"  # integers and counts: equal
    BYTES = "bytes"  # a picture in 0..255: sums of another order may round to the neighbour
    CONTROL = "control"  # a known mistake, recorded to be avoided: must differ


class Reference:
    """One folder, its floating-point tensors in `dtype` on `device`."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype = torch.float32):
        self.folder = Path(folder)
        self.device = device
        self.dtype = dtype

    @cached_property
    def config(self) -> dict:
        """Raises UserError if config.json is absent, broken or names no model."""
        path = self.folder / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not a readable reference configuration ({error}).") from None
        if not isinstance(config, dict) or not isinstance(config.get("model"), str):
            raise UserError(f"{path} names no architecture under 'model'.")
        return config

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        tensors = {}
        for name in self._files("inputs"):
            tensors |= self._read(name)
        return tensors

    @cached_property
    def expected(self) -> dict[str, Tensor]:
        """The stored outputs, on the CPU, in the reference's own precision."""
        tensors = {}
        for name in self._files("outputs"):
            tensors |= read_safetensors(self.folder / name)
        return tensors

    def weights(self, part: str) -> dict[str, Tensor]:
        """weights_<part>.safetensors."""
        return self._read(f"weights_{part}.safetensors")

    def check_scheduler(
        self, sampler: SamplerConfig, objective: Objective, part: str = "scheduler"
    ) -> None:
        """Raise UserError for a field of config.json's scheduler that our solver does otherwise.

        All fields that the solver's own scheduler has are compared, but for those that are absent.
        """
        where = f"{self.folder}/config.json: {part}."
        check_scheduler(self.config[part], sampler, objective, where)

    def load(self, network: nn.Module, part: str, dtype: torch.dtype | None = None) -> nn.Module:
        """`ready` with all of weights_<part>.safetensors."""
        return self.ready(network, self.weights(part), dtype, f"weights_{part}.safetensors")

    def ready(
        self,
        network: nn.Module,
        weights: dict[str, Tensor],
        dtype: torch.dtype | None = None,
        file: str = "",
    ) -> nn.Module:
        """The network with these weights, in evaluation mode, on the reference's device.

        file: where they come from, for messages.
        """
        load_state(network, weights, self.folder / file)
        # diffusers' own `.to` warns of layers to be kept in float32, of which these have none.
        return nn.Module.to(network, self.device, dtype or self.dtype).eval()

    def _files(self, kind: str) -> list[str]:
        """Names of a kind's files; the plain name, for its error message, if there are none."""
        whole = f"{kind}.safetensors"
        parts = sorted(path.name for path in self.folder.glob(f"{kind}_*.safetensors"))
        if parts and not (self.folder / whole).exists():
            return parts
        return [whole, *parts]

    def _read(self, name: str) -> dict[str, Tensor]:
        tensors = {}
        for key, tensor in read_safetensors(self.folder / name).items():
            dtype = self.dtype if tensor.is_floating_point() else None
            tensors[key] = tensor.to(self.device, dtype)
        return tensors


# ---- settings of a folder as ours ----


def read_objective(scheduler: dict, **settings) -> Objective:
    """The objective of a diffusers scheduler's configuration, with further settings of ours.

    Raises UserError for a table of its own.
    """
    if scheduler.get("trained_betas") is not None:
        raise UserError("config.json: trained_betas is not supported; expected a beta_schedule.")
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


# ---- what reference code watches ----


class Run(NamedTuple):
    """A sampling run from inside; each list has an entry per step."""

    timesteps: Tensor  # (steps,) int64
    predictions: list[Tensor]  # guided
    latents: list[Tensor]  # after the step


def run_sampler(
    denoiser: Denoiser,
    conditions: Conditions,
    noise: Iterable[Tensor],
    sampler: SamplerConfig,
    objective: Objective,
) -> Run:
    """Sample by the shared loop, with recorded noise: the start, then what each step draws."""
    draws = iter(noise)
    predictions: list[Tensor] = []
    latents: list[Tensor] = []

    def watch(step, prediction: Tensor, z: Tensor) -> None:
        predictions.append(prediction)
        latents.append(z)

    sample(denoiser, conditions, lambda: next(draws), sampler, objective, watch=watch)
    timesteps = make_solver(sampler, objective).timesteps
    return Run(timesteps, predictions, latents)


class Call(NamedTuple):
    """A layer's last call."""

    input: Tensor | None  # the first positional argument
    output: Tensor


@contextmanager
def record_calls(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Call]]:
    """Record the layers' calls under their names while the context is open."""
    calls: dict[str, Call] = {}

    def hook_of(name: str):
        def hook(module, arguments, output):
            calls[name] = Call(arguments[0] if arguments else None, output)

        return hook

    handles = []
    for name, layer in layers.items():
        handles.append(layer.register_forward_hook(hook_of(name)))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
