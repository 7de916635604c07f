"""TryOnModule: the one LightningModule. An architecture says what is special about it; the rest
happens here.

What is no architecture but is trained and scored by the same commands (a learned warp) extends
TrainedModule, the part that has nothing to do with diffusion.

An architecture defines `build`, `condition`, `denoise` and `unconditional`, and where the defaults
don't fit, `training_condition`, `training_view`, `readings`, `garment_features`, `acting`, `known`,
`extra_losses`, `trained_parameters` and `networks`.

Legend: B batch, z_t noisy latents (B, C, h, w), t timesteps (B,) int64.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from lightning import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from vton.config import ExperimentConfig
from vton.data.sample import TryOnBatch
from vton.diffusion import noise
from vton.diffusion.objective import Objective
from vton.diffusion.sampling import (
    Conditions,
    Features,
    Known,
    Step,
    drawing,
    sample,
    sampling_times,
)
from vton.models.attention import Looks, token_grid, watched
from vton.models.codecs import Codec


class Reading(NamedTuple):
    """What encoders say of single samples. Where all of them are frozen, `vton data cache` computes
    it ahead.
    """

    encoders: tuple[str, ...]  # their names in the module
    of: tuple[str, ...]  # fields of the batch that it reads
    compute: Callable[[TryOnBatch], Tensor]  # (B, ...), each row from its own sample alone
    settings: tuple = ()  # what decides the result besides weights and fields


class Worn(NamedTuple):
    """What `predict_step` returns where a module says more than pictures."""

    pictures: Tensor  # (B, 3, H, W) in [-1, 1]
    silhouettes: Tensor  # (B, 1, H, W), 1 where the garment lies, else 0


class TrainedModule(LightningModule):
    """What training, evaluation and run folders ask of a module, whatever it learns: an
    architecture or a warp.

    Networks that are assigned as attributes are trained, averaged and saved. Networks in
    `self.frozen` (a dict) move with the module but are none of these. `training_step` sets
    `current_pairs` (ids, for error messages) and `last_losses` (detached terms by name, for the
    curves).
    """

    FORWARDS = (
        "training_step",
        "generate",
    )  # what is called from outside and uses trained networks

    def __init__(self, config: ExperimentConfig, codec: Codec):
        super().__init__()
        self.config = config
        self.frozen: dict[str, nn.Module] = {"codec": codec.eval().requires_grad_(False)}
        self.build()
        trained = {id(p) for group in self.trained_parameters() for p in group["params"]}
        for (
            parameter
        ) in self.parameters():  # before DDP wraps the module and waits for every gradient
            parameter.requires_grad_(id(parameter) in trained)

    @abstractmethod
    def build(self) -> None:
        """Create the networks. `self.config` and `self.codec` are there; must also work on the meta
        device.
        """

    @abstractmethod
    def generate(self, batch: TryOnBatch, seed: int = 0) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1]. Each depends on its own pair and the seed, not on its
        batch.
        """

    def can_sample(self, batch: TryOnBatch) -> bool:
        """Whether the batch holds what `generate` needs; if not, training shows no pictures of such
        batches.
        """
        return True

    def trained_parameters(self) -> Iterable[dict]:
        """Optimizer parameter groups. What they leave out is frozen and stays out of optimizer, EMA
        and gradients.
        """
        return [{"params": list(self.parameters())}]

    def networks(self) -> dict[str, nn.Module]:
        """Every network by name, for `vton info`."""
        return dict(self.named_children()) | self.frozen

    def add(self, name: str, network: nn.Module, trained: bool) -> None:
        """Take in a network whose training is configuration: an attribute where it is trained, else
        frozen.
        """
        if trained:
            setattr(self, name, network)
        else:
            self.frozen[name] = network.eval().requires_grad_(False)

    def part(self, name: str) -> nn.Module:
        """A network that was added, trained or frozen."""
        return self.frozen[name] if name in self.frozen else getattr(self, name)

    def gradients_if(self, trained: bool):
        """A context that records gradients where the caller does and the network is trained."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and trained)

    @property
    def codec(self) -> Codec:
        return self.frozen["codec"]

    def _apply(self, fn, recurse=True):
        for network in self.frozen.values():
            network._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def predict_step(self, batch: TryOnBatch, batch_index: int) -> Tensor | Worn:
        return self.generate(batch, self.config.eval.seed)

    def blocks(self) -> list[nn.Module]:
        """Repeated parts that a sharded training gathers one at a time, each called by its own
        forward only.
        """
        return [
            module
            for module in self.modules()
            if isinstance(module, BasicTransformerBlock | ResnetBlock2D)
        ]

    def configure_model(self) -> None:
        """Shard over the processes, where the strategy is FSDP2: each block by itself, the rest
        with the module.

        Each of FORWARDS counts as one forward, since architectures call parts of their networks at
        will.
        """
        if self._device_mesh is None:
            return
        for parameter in self.parameters():  # FSDP2 knows no channels-last weights
            parameter.data = parameter.data.contiguous()
        # Under autocast the half-precision copies of all weights would stay for the backward pass;
        # here they are what is gathered, and go with their block. Gradients are summed up in
        # float32.
        half = torch.bfloat16 if self.config.train.precision == "bf16" else None
        policy = MixedPrecisionPolicy(
            param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        for part in (*self.blocks(), self):
            fully_shard(
                part,
                mesh=self._device_mesh["data_parallel"],
                reshard_after_forward=True,
                mp_policy=policy,
            )
        if half and self._device_mesh.device_type == "cpu":
            # CUDA's autocast brings a norm's input and weights to one type; the CPU's refuses
            # float32 beside bf16.
            for norm in self.modules():
                if isinstance(norm, nn.LayerNorm | nn.GroupNorm) and norm.weight is not None:
                    norm.register_forward_pre_hook(
                        lambda norm, inputs: (inputs[0].to(norm.weight.dtype),)
                    )
        for method in self.FORWARDS:
            register_fsdp_forward_method(self, method)

    def configure_optimizers(self):
        train = self.config.train
        groups = list(self.trained_parameters())
        # One kernel for all tensors. Lightning's fp16 cannot clip gradients with it, as it scales
        # them back itself.
        fused = train.precision != "fp16"
        optimizer = torch.optim.AdamW(
            groups, lr=train.lr, betas=train.betas, weight_decay=train.weight_decay, fused=fused
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, train))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None
    ) -> None:
        plugin = self.trainer.precision_plugin
        if gradient_clip_val and isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            # Lightning refuses to clip with fused optimizers, which scale gradients back
            # themselves. bf16 scales none.
            plugin.clip_grad_by_norm(optimizer, gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)


class TryOnModule(TrainedModule):
    """An architecture: shared training and prediction steps over the contract below."""

    FORWARDS = (*TrainedModule.FORWARDS, "looks")

    @cached_property
    def objective(self) -> Objective:
        return Objective(self.config.objective)

    # ---- what an architecture says about itself ----

    @abstractmethod
    def condition(self, batch: TryOnBatch) -> Conditions:
        """What depends on neither z_t nor t. Every tensor leads with B. No dropout here."""

    def training_condition(self, batch: TryOnBatch, u: Tensor) -> Conditions:
        """`condition` with the training's dropout, decided by u (B,) uniform in [0, 1).

        All conditions of a row go together; override it where a paper drops parts.
        """
        return self.drop(self.condition(batch), u < self.config.model.condition_dropout)

    def training_view(self, batch: TryOnBatch) -> TryOnBatch:
        """The batch as training sees it, e.g. random crops; every draw a function of (seed,
        position).
        """
        return batch

    def garment_features(
        self, conditions: Conditions, t: Tensor, step: Step | None = None
    ) -> Features:
        """What depends on t, or on the place in the sampling schedule (None in training), but not
        on z_t.
        """
        return {}

    def acting(self, step: Step) -> tuple[str, ...]:
        """Of the networks that act in some steps of sampling only, those that act in this one."""
        return ()

    def garment_grid(self, tokens: int) -> tuple[int, int] | None:
        """Height and width of the grid that the last of so many garment tokens fill, for pictures
        of attention.

        None: these tokens have no places in the in-shop garment.
        """
        return token_grid(tokens, self.config.data.size)

    def known(self, conditions: Conditions) -> Known | None:
        """Latents that sampling keeps outside a mask; None = the network paints everything."""
        return None

    @abstractmethod
    def denoise(self, z_t: Tensor, t: Tensor, conditions: Conditions, features: Features) -> Tensor:
        """The network's prediction, in the objective's prediction type, shaped like z_t."""

    @abstractmethod
    def unconditional(self, conditions: Conditions) -> Conditions:
        """The conditions of the guidance branch, as the paper drops them."""

    def extra_losses(
        self, batch: TryOnBatch, z_t: Tensor, t: Tensor, prediction: Tensor
    ) -> dict[str, Tensor]:
        """Further scalar losses, already weighted, by name."""
        return {}

    def readings(self) -> dict[str, Reading]:
        """What its encoders say of the parts of a sample, by name; `reading` gives one."""
        return {"person": self.latents("person")}

    # ---- shared by all ----

    def latents(self, field: str) -> Reading:
        """The codec's latents of one of the batch's pictures."""

        def compute(batch: TryOnBatch) -> Tensor:
            with torch.no_grad():
                return self.codec.encode(getattr(batch, field))

        return Reading(("codec",), (field,), compute, (self.codec.scaling,))

    def reading(self, name: str, batch: TryOnBatch, rows: Sequence[int] | None = None) -> Tensor:
        """A reading of a batch, or of some of its rows: what was computed ahead where the batch
        brings it.
        """
        if batch.encoded is not None and name in batch.encoded:
            return batch.encoded[name] if rows is None else batch.encoded[name][rows]
        some = rows is not None and len(rows) < len(batch)
        return self.readings()[name].compute(batch[rows] if some else batch)

    def latent_shape(self) -> tuple[int, int, int]:
        return (self.codec.channels, *self.codec.latent_size(self.config.data.size))

    def training_step(self, batch: TryOnBatch, batch_index: int) -> Tensor:
        self.current_pairs = batch.pair_id  # for error messages
        batch = self.training_view(batch)
        draws = [
            noise.generator(self.config.seed, "train", position) for position in batch.position
        ]
        x0 = self.reading("person", batch)
        t = self.objective.timesteps(noise.uniform(draws, x0))
        eps = noise.normal(x0.shape[1:], draws, x0)
        u = noise.uniform(draws, x0)
        if self.config.objective.noise_offset:
            eps = eps + self.config.objective.noise_offset * noise.normal(
                (len(x0[0]), 1, 1), draws, x0
            )
        z_t = self.objective.add_noise(x0, eps, t)

        conditions = self.training_condition(batch, u)
        prediction = self.denoise(z_t, t, conditions, self.garment_features(conditions, t))
        losses = self.objective.loss(prediction, x0, eps, t)
        extra = self.extra_losses(batch, z_t, t, prediction)
        self.last_losses = {
            "t": t,
            "diffusion": losses.detach(),
            **{k: v.detach() for k, v in extra.items()},
        }
        return losses.mean() + sum(extra.values())

    def drop(self, conditions: Conditions, dropped: Tensor) -> Conditions:
        """Conditions with the rows of `dropped` (B,) bool replaced by their unconditional form; on
        meta, none.
        """
        if dropped.is_meta or not dropped.any():
            return conditions
        null = self.unconditional(conditions)

        def choose(name: str, tensor: Tensor) -> Tensor:
            return torch.where(dropped.view(-1, *[1] * (tensor.ndim - 1)), null[name], tensor)

        return {name: choose(name, tensor) for name, tensor in conditions.items()}

    @torch.no_grad()
    def generate(self, batch: TryOnBatch, seed: int = 0) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1]. Each depends on its own pair and the seed, not on its
        batch.
        """
        keys = zip(batch.order, batch.pair_id, strict=True)
        draws = [noise.generator(seed, "sample", order, pair) for order, pair in keys]
        draw = drawing(self.latent_shape(), draws, self.device)
        conditions = self.condition(batch)
        z = sample(self, conditions, draw, self.config.sampler, self.objective)
        return self.codec.decode(z).clamp(-1, 1)

    @torch.no_grad()
    def looks(self, batch: TryOnBatch, pictures: Tensor) -> Looks:
        """Where persons look in garments, for pictures of attention.

        pictures: (B, 3, H, W) in [-1, 1], which are noised to the middle of the sampler's schedule
        and denoised once.
        """
        times = sampling_times(self.config.sampler, self.objective)
        t = times[len(times) // 2].to(pictures.device).expand(len(batch))
        x0 = self.codec.encode(pictures)
        draws = [noise.generator(self.config.seed, "attention", pair) for pair in batch.pair_id]
        z_t = self.objective.add_noise(x0, noise.normal(x0.shape[1:], draws, x0), t)
        conditions = self.condition(batch)
        features = self.garment_features(conditions, t)
        with watched() as looks:
            self.denoise(z_t, t, conditions, features)
        return looks

    def predict_step(self, batch: TryOnBatch, batch_index: int) -> Tensor:
        """Pictures of a batch, drawn among repeated rows where it is short of eval.batch_size.

        Networks may sum in another order for batches of another shape: without them a process's
        last pictures would differ by a rounding from those that another number of processes draws.
        """
        seed, pairs = self.config.eval.seed, len(self.trainer.predict_dataloaders.dataset)
        full = batch[[row % len(batch) for row in range(min(self.config.eval.batch_size, pairs))]]
        return self.generate(full, seed)[: len(batch)]


def lr_factor(step: int, train) -> float:
    """Linear warm-up, then constant or half a cosine down to a twentieth; a function of the step
    alone.
    """
    warm = min(1.0, (step + 1) / max(train.warmup_steps, 1))
    if train.schedule == "constant":
        return warm
    done = min(1.0, max(0, step - train.warmup_steps) / max(train.steps - train.warmup_steps, 1))
    return warm * (0.05 + 0.95 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * done)).item()))
