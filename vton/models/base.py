"""TryOnModule: the one LightningModule. An architecture says what is special about it; the rest
happens here.

The contract is in two parts. A `Denoiser` (vton/diffusion/denoiser.py) takes tensors and predicts.
A `TryOnModule` turns a batch (`TryOnBatch`, vton/data/sample.py) into these tensors, trains and
samples. A small architecture is both in one class; a larger one returns its Denoiser from `build`.

What an architecture defines:

    build                create the networks
    condition            batch -> conditions
    denoise              z_t, t, conditions -> prediction (in its Denoiser, like what follows)
    unconditional        conditions of the guidance branch
    garment_features     what depends on t but not on z_t, if anything does
    known                latents that sampling keeps outside a mask, if there are any
    start                latents that sampling starts from, if it does not start from pure noise

and what it may change:

    latents_of           what is noised: by default the latents of the person
    picture              what is decoded: by default all latents
    latent_shape         shape of these latents
    readings             outputs of its encoders for single samples, for `vton data cache`
    training_view        crops and other changes of a training batch
    training_condition   `condition` with the paper's dropout
    adjusted             z_t and target of a training example (DREAM and the like)
    losses               loss of each sample
    extra_losses         further losses
    trained_parameters   groups of the optimizer
    networks             names and networks in `vton info`
    garment_places       where garment tokens lie, for pictures of attention and the flow loss
    wearing              which samples read their garment, after dropout
    reads                the fields of a batch that it reads; loaders make only these
    can_sample           whether a batch holds what sampling needs
    BLOCKS, COMPILED, ATTENTIONS, OUTER    layers of networks that are not diffusers' own

A model that is no try-on architecture but is trained and scored by the same commands (the learned
warp) extends TrainedModule, the part that has nothing to do with diffusion.
"""
# Shapes: B batch, H W picture, C h w latents, z_t noisy latents (B, C, h, w), t timesteps (B,)

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import NamedTuple

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.resnet import ResnetBlock2D
from lightning import LightningModule
from torch import Tensor, nn

from vton.config import ConfigError, ExperimentConfig, TrainConfig
from vton.data.sample import TryOnBatch
from vton.diffusion import noise
from vton.diffusion.denoiser import Conditions, Denoiser, Step, drop_rows
from vton.diffusion.objective import Noised, Objective
from vton.diffusion.sampling import drawing, sample
from vton.models.attention import GarmentReads, record_reads, token_grid
from vton.models.codecs import Codec
from vton.models.compiling import compile_blocks
from vton.models.flow import FlowLayer, flow_layers, flow_losses, over_layers
from vton.models.lora import add_lora, is_lora
from vton.models.optimizers import OUTER_LAYERS, build_optimizer
from vton.models.partial import train_only
from vton.models.placement import suit_device
from vton.models.precision import DTYPES, cast, codec_precision, stored, take_own_dtype
from vton.models.rows import select_rows
from vton.models.sharding import shard_module


class Reading(NamedTuple):
    """An output of encoders for one part of a sample.

    `vton data cache` computes it ahead if all of these encoders are frozen.
    """

    encoders: tuple[str, ...]  # their names in the module
    fields: tuple[str, ...]  # of the batch, which the encoders read
    compute: Callable[[TryOnBatch], Tensor]  # (B, ...), each row from its own sample alone
    settings: tuple = ()  # what decides the result besides weights and fields


class PicturesAndSilhouettes(NamedTuple):
    """What `predict_step` of a warp returns; architectures return the pictures alone."""

    pictures: Tensor  # (B, 3, H, W) in [-1, 1]
    silhouettes: Tensor  # (B, 1, H, W), 1 where the garment lies, else 0


class TrainedModule(LightningModule):
    """What training, evaluation and run folders ask of a module, whatever it learns.

    Networks that are assigned as attributes are trained, averaged and saved. Networks in
    `self.frozen` (a dict) move with the module, but are neither trained nor averaged nor saved.
    `add` takes in a network that the configuration trains, freezes, or trains in part.

    `training_step` sets `current_pairs` (ids, for error messages) and `last_losses` (detached terms
    by name, for the curves).
    """

    # Repeated parts of the networks, each called through its own forward only. Sharded training
    # gathers them one at a time.
    BLOCKS: tuple[type[nn.Module], ...] = (BasicTransformerBlock, ResnetBlock2D)
    # The same for trainer.compile, and the attention layers inside, which are not compiled.
    COMPILED: tuple[type[nn.Module], ...] = (BasicTransformerBlock, ResnetBlock2D)
    ATTENTIONS: tuple[type[nn.Module], ...] = (Attention,)
    # Names of the layers that train.optimizer=muon leaves to AdamW: a network's first and last.
    OUTER: tuple[str, ...] = OUTER_LAYERS

    def __init__(self, config: ExperimentConfig, codec: Codec):
        super().__init__()
        self.config = config
        codec.to(DTYPES[codec_precision(config)])
        self.frozen: dict[str, nn.Module] = {"codec": codec.eval().requires_grad_(False)}
        self.start_building()
        if self.has_lora:
            self._add_lora()
        self._freeze_the_rest()

    def start_building(self) -> None:
        """Call `build`; for subclasses with something to do around it."""
        self.build()

    def _add_lora(self) -> None:
        """Add LoRA's matrices beside the attention weights that would be trained without it."""
        groups = [list(group["params"]) for group in self.trained_parameters()]
        self.requires_grad_(False)
        for parameters in groups:
            for parameter in parameters:
                parameter.requires_grad_(True)
        add_lora(self.children(), self.config.model.lora, stored(self.config, trained=False))

    def _freeze_the_rest(self) -> None:
        """Let the optimizer's parameters alone ask for gradients.

        Here, because DDP, which wraps the module later, waits for a gradient of every parameter
        that asks for one.
        """
        trained = set()
        for group in self.optimized():
            trained |= {id(parameter) for parameter in group["params"]}
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) in trained)

    @abstractmethod
    def build(self) -> None:
        """Create the networks.

        `self.config` and `self.codec` are set before. It must also work on the meta device.
        """

    @abstractmethod
    def generate(self, batch: TryOnBatch, seed: int = 0) -> Tensor:
        """Draw pictures (B, 3, H, W) in [-1, 1]. Each depends on its pair and the seed alone."""

    @classmethod
    def reads(cls, config: ExperimentConfig) -> frozenset[str] | None:
        """The tensor fields of a batch that training and sampling read; None: all of them.

        Loaders make only these. A warped garment takes longer to make than all the rest.
        """
        return None

    @classmethod
    def fields_read(cls, config: ExperimentConfig) -> frozenset[str] | None:
        """`reads`, and what the losses that all architectures share read besides."""
        return cls.reads(config)

    def can_sample(self, batch: TryOnBatch) -> bool:
        """Whether the batch holds what `generate` needs. Training draws no pictures of others."""
        return True

    # ---- networks, and which of their parameters are trained ----

    def add(
        self,
        name: str,
        network: nn.Module,
        trained: bool = True,
        only: Callable[[str], bool] | None = None,
    ) -> None:
        """Take in a network: as an attribute if it is trained, else into `frozen`, in the dtype of
        frozen networks (vton/models/precision.py).

        only: train, average, save and export just the parameters whose names it accepts, such as
            the attention layers or LoRA's matrices; see vton/models/partial.py
        """
        if not trained:
            cast(network, stored(self.config, trained=False))
            self.frozen[name] = network.eval().requires_grad_(False)
            return
        setattr(self, name, network)
        if only is not None:
            train_only(network, only)

    def stored(self, settings) -> torch.dtype:
        """The dtype that a network is loaded in, by the `trained` of its settings."""
        return stored(self.config, settings.trained)

    def compute_in(self, precision: str) -> None:
        """Cast all weights to a precision (a key of DTYPES), which arithmetic then has too.

        The codec keeps its own.
        """
        codec = self.frozen.pop("codec")
        self.to(DTYPES[precision])
        for network in self.children():
            if isinstance(network, ModelMixin):
                take_own_dtype(network)
        self.frozen = {"codec": codec, **self.frozen}

    def part(self, name: str) -> nn.Module:
        """A network that was added, trained or frozen."""
        return self.frozen[name] if name in self.frozen else getattr(self, name)

    def trained_parameters(self) -> Iterable[dict]:
        """Parameter groups of the optimizer.

        Parameters that are in none of them get no gradient and are not averaged.
        """
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    @property
    def has_lora(self) -> bool:
        return self.config.lora_rank > 0

    def optimized(self) -> list[dict]:
        """`trained_parameters`, or LoRA's matrices if the configuration asks for LoRA."""
        if not self.has_lora:
            return list(self.trained_parameters())
        return [{"params": [p for name, p in self.named_parameters() if is_lora(name)]}]

    def networks(self) -> dict[str, nn.Module]:
        """Every network by name, for `vton info`."""
        return dict(self.named_children()) | self.frozen

    def gradients_if(self, trained: bool):
        """A context that records gradients where the caller does and the network is trained."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and trained)

    @property
    def codec(self) -> Codec:
        return self.frozen["codec"]

    def _apply(self, fn, recurse=True):
        """Move or cast the frozen networks too: torch does not know them as submodules."""
        for network in self.frozen.values():
            network._apply(fn, recurse)
        return super()._apply(fn, recurse)

    # ---- what Lightning calls ----

    def predict_step(self, batch: TryOnBatch, batch_index: int) -> Tensor | PicturesAndSilhouettes:
        return self.generate(batch, self.config.eval.seed)

    def as_forward(self, function: Callable, *arguments):
        """function(*arguments) as one forward pass, for which FSDP2 gathers the weights."""
        return function(*arguments)

    def blocks(self) -> list[nn.Module]:
        """The repeated parts (BLOCKS) of the trained networks."""
        return [module for module in self.modules() if isinstance(module, self.BLOCKS)]

    def make_fast(self, device: torch.device) -> None:
        """Prepare all networks for the device that they will compute on."""
        trainer = self.config.trainer
        suit_device(self, device, trainer.deterministic)
        if trainer.compile:
            compile_blocks((self, *self.frozen.values()), self.COMPILED, self.ATTENTIONS)

    def configure_model(self) -> None:
        self.make_fast(self.trainer.strategy.root_device)
        if self._device_mesh is not None:  # FSDP2's; every other strategy has none
            forwards = ("training_step", "generate", "as_forward")
            mesh = self._device_mesh["data_parallel"]
            half = self.config.train.precision == "bf16"
            shard_module(self, self.blocks(), forwards, mesh, half)

    def configure_optimizers(self):
        train = self.config.train
        optimizer = build_optimizer(self, self.optimized(), self.config)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, train))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class TryOnModule(TrainedModule, Denoiser):
    """An architecture: from a batch to conditions, training, sampling."""

    denoiser: Denoiser  # what trains and samples: what `build` returns, else the module itself

    def start_building(self) -> None:
        self._keeps_readings = False
        self._kept_readings: dict[tuple[str, int], tuple[Tensor, TryOnBatch]] = {}
        denoiser = self.build()
        self._check_built(denoiser)
        # Not registered as a part of the module: its networks are attributes already, under the
        # names that checkpoints have.
        self.__dict__["denoiser"] = self if denoiser is None else denoiser

    def _check_built(self, denoiser: object) -> None:
        """Raise TypeError for what `build` must not return, and for names that would be taken for
        another thing: `self.denoiser` is the Denoiser, whatever network has that name.
        """
        build = f"{type(self).__name__}.build"
        if denoiser is not None and not isinstance(denoiser, Denoiser):
            raise TypeError(f"{build} returns a {type(denoiser).__name__}, not a Denoiser or None")
        for name, _ in self.named_children():
            if name == "denoiser" or hasattr(type(self), name):
                raise TypeError(f"{build} calls a network {name!r}, a name of the contract's own")

    @classmethod
    def fields_read(cls, config: ExperimentConfig) -> frozenset[str] | None:
        own = cls.reads(config)
        if own is None or not config.model.flow_loss.weight:
            return own
        return own | {"person", "garment", "agnostic_mask", "truth_garment_mask"}

    # ---- what an architecture says about itself ----

    @abstractmethod
    def build(self) -> Denoiser | None:
        """Create the networks as attributes or by `add`, and return the Denoiser made of them.

        Return None if the module itself is the Denoiser. `self.config` and `self.codec` are set
        before. It must also work on the meta device. No network may be called `denoiser` or as a
        method.
        """

    @abstractmethod
    def condition(self, batch: TryOnBatch) -> Conditions:
        """Compute what depends on neither z_t nor t. Every tensor leads with B; no dropout."""

    def training_condition(self, batch: TryOnBatch, u: Tensor) -> Conditions:
        """`condition` with the training's dropout, decided by u (B,) uniform in [0, 1).

        All conditions of a row go together; override it where a paper drops parts.
        """
        return self.drop(self.condition(batch), u < self.config.model.condition_dropout)

    def training_view(self, batch: TryOnBatch) -> TryOnBatch:
        """Change a training batch, for instance by random crops.

        Every draw must be a function of (seed, position).
        """
        return batch

    def latents_of(self, batch: TryOnBatch) -> Tensor:
        """What is noised and learned, x0 (B, C, h, w): by default the latents of the person."""
        return self.reading("person", batch)

    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of `latents_of`."""
        return (self.codec.channels, *self.codec.latent_size(self.config.data.size))

    def picture(self, z: Tensor, batch: TryOnBatch) -> Tensor:
        """Turn sampled latents (B, C, h, w) into pictures (B, 3, H, W) in [-1, 1]."""
        return self.codec.decode(z).clamp(-1, 1)

    def adjusted(self, noised: Noised, conditions: Conditions) -> Noised:
        """Change z_t and the target of training examples.

        For methods that do not train on plainly noised latents, such as DREAM (arXiv 2312.00210),
        which adds part of the network's own error to both.
        """
        return noised

    def losses(self, prediction: Tensor, noised: Noised, batch: TryOnBatch) -> Tensor:
        """(B,) loss of each sample."""
        return self.objective.loss(prediction, noised)

    def extra_losses(
        self, batch: TryOnBatch, noised: Noised, prediction: Tensor
    ) -> dict[str, Tensor]:
        """Further scalar losses, already weighted, by name."""
        return {}

    def readings(self) -> dict[str, Reading]:
        """The encoders' outputs for the parts of a sample, by name; `reading` gives one of them."""
        return {"person": self.latents("person")}

    def garment_places(self, tokens: int) -> tuple[int, int] | None:
        """Height and width of the grid of garment tokens, for a layer with `tokens` of them.

        If the grid has fewer, the last tokens fill it. For pictures of attention and the flow loss.
        None: these tokens have no places in the in-shop garment.
        """
        return token_grid(tokens, self.config.data.size)

    def wearing(self, conditions: Conditions) -> Tensor:
        """(B,) bool, on the CPU: which samples read their garment; the flow loss skips the rest.

        By default all do, those whose conditions were dropped included.
        """
        return torch.ones(len(next(iter(conditions.values()))), dtype=torch.bool)

    # ---- shared by all ----

    @cached_property
    def objective(self) -> Objective:
        return Objective(self.config.objective)

    def latents(self, field: str) -> Reading:
        """The codec's latents of one of the batch's pictures."""

        def compute(batch: TryOnBatch) -> Tensor:
            with torch.no_grad():
                return self.codec.encode(getattr(batch, field))

        return Reading(("codec",), (field,), compute, self.codec.statistics)

    def reading(self, name: str, batch: TryOnBatch, rows: Sequence[int] | None = None) -> Tensor:
        """A reading of a batch, (B, ...), or of some of its rows, ascending and each once.

        It is taken from the batch if it was computed ahead, and computed once in a training step or
        a sampling (`reading_once`).
        """
        if rows is not None and len(rows) == len(batch):
            rows = None  # they are all rows, in order
        key = (name, id(batch))
        if batch.encoded is not None and name in batch.encoded:
            tensor = batch.encoded[name]
        elif key in self._kept_readings:
            tensor, _ = self._kept_readings[key]
        elif rows is not None:
            return self.readings()[name].compute(batch[rows])
        else:
            tensor = self.readings()[name].compute(batch)
            if self._keeps_readings:
                self._kept_readings[key] = (tensor, batch)  # holding the batch keeps its id unique
        return tensor if rows is None else select_rows(tensor, rows)

    @contextmanager
    def reading_once(self) -> Iterator[None]:
        """Inside this context every reading of a whole batch is computed once."""
        self._keeps_readings = True
        try:
            yield
        finally:
            self._keeps_readings = False
            self._kept_readings.clear()

    def drop(self, conditions: Conditions, dropped: Tensor) -> Conditions:
        """Conditions with the rows of `dropped` (B,) bool, on the CPU, in their unconditional
        form.
        """
        if not dropped.any():
            return conditions
        return drop_rows(conditions, self.denoiser.unconditional(conditions), dropped)

    def training_step(self, batch: TryOnBatch, batch_index: int) -> Tensor:
        """The loss, a scalar, of a batch whose draws are functions of (seed, position)."""
        self.current_pairs = batch.pair_id  # for error messages
        batch = self.training_view(batch)
        generators = []
        for position in batch.position:
            generators.append(noise.generator(self.config.seed, "train", position))
        with self.reading_once():
            x0 = self.latents_of(batch)
            t = self.objective.timesteps(noise.uniform(generators))
            eps = noise.normal(x0.shape[1:], generators, x0)
            u = noise.uniform(generators)
            offset = self.config.objective.noise_offset
            if offset:
                eps = eps + offset * noise.normal((x0.shape[1], 1, 1), generators, x0)
            return self.training_loss(batch, x0, eps, t, u)

    def training_loss(
        self, batch: TryOnBatch, x0: Tensor, eps: Tensor, t: Tensor, u: Tensor
    ) -> Tensor:
        """The loss, a scalar, of a batch with its draws.

        x0, eps (B, C, h, w): clean latents and noise; t (B,): timesteps; u (B,) in [0, 1): decides
        what is dropped. t and u are on the CPU.
        """
        conditions = self.training_condition(batch, u)
        noised = self.adjusted(self.objective.noised(x0, eps, t), conditions)
        features = self.denoiser.garment_features(conditions, t)
        recording = record_reads() if self.flow_loss_acts() else nullcontext()
        with recording as reads:
            prediction = self.denoiser.denoise(noised.z_t, t, conditions, features)
        losses = self.losses(prediction, noised, batch)
        extra = self.extra_losses(batch, noised, prediction)
        if reads is not None:
            extra["flow"] = self.flow_loss(reads, batch, t, self.wearing(conditions))

        self.last_losses = {"t": t, "diffusion": losses.detach()}
        for name, loss in extra.items():
            self.last_losses[name] = loss.detach()
        return losses.mean() + sum(extra.values())

    def flow_loss_acts(self) -> bool:
        """Whether model.flow_loss is on at this step."""
        settings = self.config.model.flow_loss
        return settings.weight > 0 and self.global_step >= settings.from_step

    def flow_layers(self, reads: GarmentReads, smallest: float) -> list[FlowLayer]:
        """The recorded layers whose tokens have places.

        smallest: least height of their grids, as a share of the picture's. Raises ConfigError if no
        layer is left.
        """
        size = self.config.data.size
        layers = flow_layers(reads.layers, size, self.garment_places, smallest)
        if not layers:
            raise ConfigError(
                f"model.flow_loss: {self.config.model.name} has no layer of at least "
                f"{smallest:g} of the picture's height that reads garment tokens with places; "
                "leave model.flow_loss.weight at 0."
            )
        return layers

    def flow_loss(
        self, reads: GarmentReads, batch: TryOnBatch, t: Tensor, wearing: Tensor
    ) -> Tensor:
        """Leffa's loss (vton/models/flow.py), weighted, a scalar.

        Its mask is where the photograph shows the garment if that is known, else the agnostic mask.
        wearing (B,) bool: samples that read their garment.
        """
        settings = self.config.model.flow_loss
        if not wearing.any():
            return batch.person.new_zeros(())
        layers = self.flow_layers(reads, settings.smallest_layer)
        taking_part = wearing & (t < settings.until * self.config.objective.train_timesteps)
        mask = batch.truth_garment_mask
        if mask is None:
            mask = batch.agnostic_mask
        losses = flow_losses(layers, taking_part, batch.garment, batch.person, mask, settings)
        return settings.weight * over_layers(losses, settings)

    @torch.no_grad()
    def generate(
        self,
        batch: TryOnBatch,
        seed: int = 0,
        watch: Callable[[Step, Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """Draw pictures (B, 3, H, W) in [-1, 1]. Each depends on its pair and the seed alone.

        watch: as in `vton.diffusion.sampling.sample`
        """
        generators = []
        for order, pair in zip(batch.order, batch.pair_name, strict=True):
            generators.append(noise.generator(seed, "sample", order, pair))
        draw = drawing(self.latent_shape(), generators, self.device)
        with self.reading_once():
            conditions = self.condition(batch)
            z = sample(self.denoiser, conditions, draw, self.config.sampler, self.objective, watch)
            return self.picture(z, batch)

    def predict_step(self, batch: TryOnBatch, batch_index: int) -> Tensor:
        """Pictures (B, 3, H, W) of a batch, which is filled up to eval.batch_size while drawing.

        Networks may sum in another order for batches of another shape. Without the repeated rows, a
        process's last pictures would differ by rounding from those of another number of processes.
        """
        pairs = len(self.trainer.predict_dataloaders.dataset)
        full_size = min(self.config.eval.batch_size, pairs)
        rows = [row % len(batch) for row in range(full_size)]
        return self.generate(batch[rows], self.config.eval.seed)[: len(batch)]


def lr_factor(step: int, train: TrainConfig) -> float:
    """The factor of train.lr at a step.

    A linear warm-up, then 1, or half a cosine from 1 down to a twentieth.
    """
    warmup = min(1.0, (step + 1) / max(train.warmup_steps, 1))
    if train.schedule == "constant":
        return warmup
    length = max(train.steps - train.warmup_steps, 1)
    done = min(1.0, max(0, step - train.warmup_steps) / length)
    # In float32, so that runs of earlier versions resume on the same curve.
    cosine = torch.cos(torch.tensor(math.pi * done)).item()
    return warmup * (0.05 + 0.95 * 0.5 * (1 + cosine))
