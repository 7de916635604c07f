"""Leffa's part of `vton verify`: tensors recomputed by the code that trains and samples.

The demo's pictures and masks, latents, reference features, one transformer block from inside, a
guided call, two short runs through the shared sampler, a training step with gradients, and the flow
loss in all its forms.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from vton.config import FlowLossConfig, SamplerConfig
from vton.data import labels
from vton.data.derived.leffa_masks import leffa_dc, leffa_hd
from vton.data.derived.shapes import Skeleton
from vton.data.ranges import from_unit, normalise, to_unit
from vton.diffusion.denoiser import Conditions
from vton.diffusion.sampling import double, rescaled
from vton.diffusion.solvers import make_solver, sampling_times
from vton.models.attention import merge_heads, record_reads, token_grid
from vton.models.codecs import KLCodec, latent_mask
from vton.models.flow import (
    FlowLayer,
    flow_field,
    flow_layers,
    flow_losses,
    over_layers,
    warp_by_flow,
)
from vton.models.leffa import demo
from vton.models.leffa.building import with_inputs
from vton.models.leffa.checkpoint import REFERENCE, UNET, VAE
from vton.models.leffa.network import Leffa
from vton.models.reference import Kind, Reference, read_objective, record_calls, run_sampler
from vton.models.unet import execution_order, published_arguments
from vton.weights.pretrained import below, read_safetensors

INTEGERS = ("params_with", ".timesteps", "fast.reference_timestep", "flow.layers_used", "widen.")
STEPS = ("run.guided_steps", "run.latents_steps", "fast.latents_steps")
BYTES = ("run.image", "run.repainted", "repaint.result_rgb", "prep.centered_rgb")
# What a recorded mistake is compared with.
CORRECT = {
    "attn2_dropped": "call.noise_pred",
    "guided_swapped": "call.guided_plain",
    "no_reference": "call.noise_pred",
    "reference_at_t0": "call.noise_pred",
}
# The parse map's labels: DressCode's, and the neck.
PARSE_LABELS = np.append(labels.FROM_DRESSCODE, labels.NECK)
MASK_RULES = {"hd": leffa_hd, "dc": leffa_dc}


def kind(name: str) -> Kind:
    if name.startswith("control."):
        return Kind.CONTROL
    if name.startswith("mask.") or "timesteps_" in name or any(part in name for part in INTEGERS):
        return Kind.EXACT
    if name in STEPS:
        return Kind.STEPS
    if name in BYTES:
        return Kind.BYTES
    gradients = ("train.grad.", "flow.grad.", "flow.grad_total.")
    return Kind.GRADIENT if name.startswith(gradients) else Kind.CALL


def recompute(reference: Reference) -> dict[str, Tensor]:
    """Every tensor of the outputs under its name there."""
    networks = Networks(reference)
    with torch.no_grad():
        tensors = pictures(reference)
        tensors |= masks(reference)
        tensors |= networks.latents("run")
        tensors |= guided_call(networks)
        tensors |= schedule(networks)
        tensors |= short_runs(networks)
    return tensors | training_step(networks) | FlowStep(networks).tensors()


class Networks:
    """The folder's networks behind Leffa, and its settings as ours."""

    def __init__(self, reference: Reference):
        self.reference = reference
        self.inputs = reference.inputs
        self.settings = reference.config
        weights = reference.weights("checkpoint")
        file = "weights_checkpoint.safetensors"

        self.unet = self.empty_unet("new_in_channels")
        self.reference_unet = self.empty_unet("reference_in_channels")
        reference.ready(self.unet, below(weights, UNET), file=file)
        reference.ready(self.reference_unet, below(weights, REFERENCE), file=file)
        vae = AutoencoderKL(**self.settings["vae"])
        reference.ready(vae, below(weights, VAE), torch.float32, file)
        self.codec = KLCodec(vae)
        self.model = Leffa(self.unet, self.reference_unet)

        scheduler = self.settings["scheduler"]
        self.objective = read_objective(scheduler)
        self.sampler = SamplerConfig(
            solver=self.settings["sampler"]["solver"], spacing=scheduler["timestep_spacing"]
        )

    def empty_unet(self, channels: str) -> UNet2DConditionModel:
        arguments = published_arguments(self.settings["unet"])
        return UNet2DConditionModel(**arguments | {"in_channels": self.settings[channels]})

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return tuple(self.inputs["src_image"].shape[-2:])

    # ---- latents ----

    def posterior_sample(self, picture: Tensor, noise: Tensor) -> Tensor:
        """What published runs encode by; ours takes the mode, the same with no noise."""
        posterior = self.codec.posterior(picture)
        return (posterior.mean + posterior.std * noise) * self.codec.scaling

    def latents(self, draws: str) -> dict[str, Tensor]:
        """What the networks are given, with the posterior noise of `run` or `train`."""
        i = self.inputs
        mask = (i["mask"] >= 0.5).to(i["mask"].dtype)
        masked = self.posterior_sample(i["src_image"] * (1 - mask), i[f"{draws}.vae_noise_masked"])
        size = masked.shape[-2:]
        return {
            "latents.mask": latent_mask(mask, size),
            "latents.masked": masked,
            "latents.ref": self.posterior_sample(i["ref_image"], i[f"{draws}.vae_noise_ref"]),
            "latents.densepose": F.interpolate(i["densepose"], size, mode="nearest"),
        }

    def conditions(self, draws: str, reference_timestep: int | None = None) -> Conditions:
        latents = self.latents(draws)
        device = latents["latents.ref"].device
        return self.model.condition(
            mask=latents["latents.mask"],
            masked=latents["latents.masked"],
            pose=latents["latents.densepose"],
            garment=torch.arange(len(latents["latents.ref"]), device=device),
            garment_latents=latents["latents.ref"],
            reference_timestep=reference_timestep,
        )

    def run_settings(self, name: str) -> SamplerConfig:
        run = self.settings["runs"][name]
        return replace(
            self.sampler,
            steps=run["num_inference_steps"],
            guidance=run["guidance_scale"],
            guidance_rescale=run["guidance_rescale"],
        )


# ---- the demo ----


def pictures(reference: Reference) -> dict[str, Tensor]:
    """From a photograph and masks to what the networks are given, and from their picture back.

    In the stored precision, whatever the networks run in.
    """
    i = read_safetensors(reference.folder / "inputs.safetensors")
    picture = reference.config["picture"]
    size = (picture["height"], picture["width"])
    centred = torch.from_numpy(demo.on_white(i["prep.photo_rgb"].numpy(), size))
    mask = demo.resize_mask(i["prep.mask_small"].numpy(), size)
    repainted = demo.repaint(
        i["repaint.generated_rgb"].numpy(),
        i["repaint.person_rgb"].numpy(),
        i["repaint.mask"].numpy(),
    )
    channels, base = reference.config["reference_in_channels"], i["widen.base_weight"]
    tensors = {
        "prep.centered_rgb": centred,
        "prep.image": normalise(centred.permute(2, 0, 1)[None]),
        "prep.mask": torch.from_numpy(mask)[None, None].float(),
        "repaint.result_rgb": torch.from_numpy(repainted),
    }
    for unet, inputs in (("unet", "new_in_channels"), ("unet_encoder", "reference_in_channels")):
        wide = with_inputs(base, reference.config[inputs], channels, reference.folder)
        tensors[f"widen.{unet}.weight"] = wide
        tensors[f"widen.{unet}.bias"] = i["widen.base_bias"]
    return tensors


def masks(reference: Reference) -> dict[str, Tensor]:
    """The demo's masks of a parse map and joints, each row's bits packed into bytes."""
    i = read_safetensors(reference.folder / "inputs.safetensors")
    parse = PARSE_LABELS[i["mask.parse"].numpy()]
    joints = i["mask.joints"].numpy()
    found = ~(joints <= 1).all(1)
    body = Skeleton(np.concatenate([joints, found[:, None]], 1), parse.shape)
    tensors = {}
    for name in reference.expected:
        if name.startswith("mask."):
            _, rule, category = name.split(".")
            mask = MASK_RULES[rule](parse, body, category)
            tensors[name] = torch.from_numpy(np.packbits(mask, axis=1))
    return tensors


# ---- calls and runs ----


def guided_call(networks: Networks) -> dict[str, Tensor]:
    """One denoiser call on both guidance branches, and one transformer block of it from inside."""
    i, model, call = networks.inputs, networks.model, networks.settings["call"]
    conditions = networks.conditions("run")
    both = double(model.unconditional(conditions), conditions)
    z = torch.cat([i["call.latents"], i["call.latents"]])
    t = torch.full((len(z),), call["timestep"], device=z.device)
    features = model.garment_features(both, t)
    block = networks.unet.get_submodule(networks.settings["example_block"])
    layers = {name: getattr(block, name) for name in ("norm1", "attn1", "norm2", "norm3")}
    with record_calls(layers | {"block": block}) as calls:
        prediction = model.denoise(z, t, both, features)
    uncond, cond = prediction.chunk(2)
    plain = uncond + call["guidance_scale"] * (cond - uncond)
    tensors = {
        "call.input12": model.unet_input(z, both),
        "call.noise_pred": prediction,
        "call.noise_pred_cond_alone": model.denoise(
            i["call.latents"],
            t[: len(cond)],
            conditions,
            model.garment_features(conditions, t[: len(cond)]),
        ),
        "call.guided_plain": plain,
        "call.guided": rescaled(plain, cond, call["guidance_rescale"]),
        "control.zero_features": uncond,
    }
    for name, compared in CORRECT.items():
        tensors[f"control.{name}"] = tensors[compared]
    for index, name in enumerate(model.blocks):
        tensors[f"ref.{name}"] = features[str(index)][features["row"]]

    conditional = slice(len(cond), None)
    own = calls["norm1"].output[conditional]
    garment = tensors[f"ref.{networks.settings['example_block']}"][conditional]
    inside = {
        "joined": torch.cat([own, garment], 1),
        "output": calls["attn1"].output[conditional],
        "after_attn1": calls["norm2"].input[conditional],
        "after_attn2": calls["norm3"].input[conditional],
        "block_output": calls["block"].output[conditional],
    }
    return tensors | {f"attn.{name}": tensor for name, tensor in inside.items()}


def schedule(networks: Networks) -> dict[str, Tensor]:
    """The noise level of every t, and the visited timesteps for each length that is asked for."""
    tensors = {"scheduler.alphas_cumprod": networks.objective.alphas_cumprod}
    for name in networks.reference.expected:
        if name.startswith("scheduler.timesteps_"):
            sampler = replace(networks.sampler, steps=int(name.rsplit("_", 1)[1]))
            solver = make_solver(sampler, networks.objective)
            tensors[name] = solver.timesteps
    return tensors


def short_runs(networks: Networks) -> dict[str, Tensor]:
    """The shared sampling loop with the recorded noise, exact and with one reference pass."""
    i, model = networks.inputs, networks.model
    noise = [i["run.init_noise"], *i["run.step_noise"]]
    tensors = {}
    for name, settings in networks.settings["runs"].items():
        sampler = networks.run_settings(name)
        once = None
        if settings["ref_acceleration"]:
            times = sampling_times(sampler, networks.objective)
            once = int(times[len(times) // 2])
            tensors[f"{name}.reference_timestep"] = torch.tensor([once])
        conditions = networks.conditions("run", once)
        networks.reference.check_scheduler(sampler, networks.objective)
        run = run_sampler(model, conditions, noise, sampler, networks.objective)
        tensors |= {
            f"{name}.timesteps": run.timesteps,
            f"{name}.guided_steps": torch.stack(run.predictions),
            f"{name}.latents_steps": torch.stack(run.latents),
        }
        if f"{name}.noise_pred_step0" in networks.reference.expected:
            tensors[f"{name}.noise_pred_step0"] = first_prediction(networks, run.timesteps[0])
        if f"{name}.image" in networks.reference.expected:
            tensors |= decoded(networks, name, run.latents[-1])
    return tensors


def first_prediction(networks: Networks, time: Tensor) -> Tensor:
    """Both branches of a run's first step, unconditional rows first."""
    model, conditions = networks.model, networks.conditions("run")
    both = double(model.unconditional(conditions), conditions)
    z = networks.inputs["run.init_noise"]
    t = time.expand(2 * len(z)).to(z.device)
    return model.denoise(torch.cat([z, z]), t, both, model.garment_features(both, t))


def decoded(networks: Networks, name: str, z: Tensor) -> dict[str, Tensor]:
    """A run's picture as bytes, and with the person pasted back around the mask."""
    i = networks.inputs
    painted = as_bytes(networks.codec.decode(z))
    person, mask = as_bytes(i["src_image"]), as_bytes(from_unit(i["mask"]))[..., 0]
    repainted = []
    for row in zip(painted.numpy(), person.numpy(), mask.numpy(), strict=True):
        repainted.append(torch.from_numpy(demo.repaint(*row)))
    return {f"{name}.image": painted, f"{name}.repainted": torch.stack(repainted)}


def as_bytes(pictures: Tensor) -> Tensor:
    """(B, C, H, W) in [-1, 1] to uint8 (B, H, W, C) on the CPU."""
    levels = (to_unit(pictures.float()).clamp(0, 1) * 255).round()
    return levels.permute(0, 2, 3, 1).to("cpu", torch.uint8).contiguous()


# ---- training ----


class Trained:
    """One training step's forward pass: loss of epsilon, nothing dropped, both UNets trained."""

    def __init__(self, networks: Networks, t: Tensor, conditions: Conditions | None = None):
        i, model, objective = networks.inputs, networks.model, networks.objective
        with torch.no_grad():
            x0 = networks.posterior_sample(i["src_image"], i["train.vae_noise_src"])
            conditions = conditions or networks.conditions("train")
        self.noised = objective.noised(x0, i["train.noise"], t)
        self.features = model.garment_features(conditions, t)
        with record_reads() as reads:
            self.prediction = model.denoise(self.noised.z_t, t, conditions, self.features)
        self.reads = reads.layers
        self.loss = objective.loss(self.prediction, self.noised).mean()


def training_step(networks: Networks) -> dict[str, Tensor]:
    """Loss and gradients of one step, and the loss without garment."""
    t = networks.inputs["train.timesteps"]
    step = Trained(networks, t)
    found = gradients(networks, step.loss)
    norms = torch.stack([gradient.float().norm() for gradient in found.values()])
    with torch.no_grad():
        null = networks.model.unconditional(networks.conditions("train"))
        dropped = Trained(networks, t, null).loss
    tensors = {
        "train.latents": step.noised.x0,
        "train.noisy_latents": step.noised.z_t,
        "train.noise_pred": step.prediction.detach(),
        "train.loss": step.loss.detach()[None],
        "train.loss_dropout": dropped[None],
        "train.grad_norm_total": norms.norm()[None],
    }
    for prefix, unet in both_unets(networks).items():
        without = sum(prefix + name not in found for name, _ in unet.named_parameters())
        tensors[f"train.params_without_grad.{prefix[:-1]}"] = torch.tensor([without])
    for index, name in enumerate(networks.model.blocks):
        feature = step.features[str(index)][step.features["row"]]
        tensors[f"train.ref.{name}"] = feature.detach()
    return tensors | {f"train.grad.{name}": gradient for name, gradient in found.items()}


def both_unets(networks: Networks) -> dict[str, nn.Module]:
    return {UNET: networks.unet, REFERENCE: networks.reference_unet}


def gradients(networks: Networks, loss: Tensor) -> dict[str, Tensor]:
    """The loss's gradients by the checkpoint's names, of the parameters that have one."""
    parameters = {}
    for prefix, unet in both_unets(networks).items():
        for name, parameter in unet.named_parameters():
            parameters[prefix + name] = parameter
    found = torch.autograd.grad(
        loss, list(parameters.values()), retain_graph=True, allow_unused=True
    )
    return {name: g for name, g in zip(parameters, found, strict=True) if g is not None}


class FlowStep:
    """A training step with the flow loss, and the forms in which papers and code have it."""

    def __init__(self, networks: Networks):
        i, flow = networks.inputs, networks.settings["flow"]
        self.networks, self.garment, self.person = networks, i["ref_image"], i["src_image"]
        self.mask, self.t = i["flow.mask"], i["flow.timesteps"]
        self.step = Trained(networks, self.t)
        self.settings = FlowLossConfig(
            weight=flow["weight"],
            until=flow["timestep_threshold"] / networks.objective.config.train_timesteps,
            temperature=flow["temperature"],
            smallest_layer=flow["resolution_threshold"],
        )

    def layers(self, settings: FlowLossConfig) -> dict[str, FlowLayer]:
        """The layers on which the loss acts, by the name of their block."""
        size = self.networks.size
        layers = {}
        for name, read in zip(execution_order(self.networks.unet), self.step.reads, strict=True):
            smallest = settings.smallest_layer
            for layer in flow_layers([read], size, lambda n: token_grid(n, size), smallest):
                layers[name] = layer
            if read.q.shape[-2] == 1 and 1 / size[0] >= smallest:  # a token for the whole picture
                layers[name] = FlowLayer(read, (1, 1), (1, 1))
        return layers

    def each(self, settings: FlowLossConfig, acts: Tensor) -> Tensor:
        """(L, B): each layer's and sample's loss; where it does not act, 0 with a gradient of 0."""
        layers, everywhere = self.layers(settings).values(), torch.ones_like(acts)
        losses = flow_losses(layers, everywhere, self.garment, self.person, self.mask, settings)
        return losses * acts

    def loss(self, **changed) -> Tensor:
        settings = replace(self.settings, **changed)
        bound = settings.until * self.networks.objective.config.train_timesteps
        return over_layers(self.each(settings, self.t < bound), settings)

    def tensors(self) -> dict[str, Tensor]:
        loss = self.loss()
        total = self.step.loss + self.settings.weight * loss
        layers = self.layers(self.settings)
        everywhere = torch.ones_like(self.t, dtype=torch.bool)
        blocks = execution_order(self.networks.unet)
        tensors = {
            "flow.layers_used": torch.tensor([int(name in layers) for name in blocks]),
            "flow.loss_layers": self.each(self.settings, everywhere),
            "flow.loss": loss[None],
            "flow.diffusion_loss": self.step.loss[None],
            "flow.total": total[None],
        }
        tensors |= self.variants() | self.inside(layers)
        found = gradients(self.networks, loss)
        for prefix in both_unets(self.networks):
            count = sum(name.startswith(prefix) for name in found)
            tensors[f"flow.params_with_grad.{prefix[:-1]}"] = torch.tensor([count])
        for name, gradient in found.items():
            tensors[f"flow.grad.{name}"] = gradient
        for name, gradient in gradients(self.networks, total).items():
            tensors[f"flow.grad_total.{name}"] = gradient
        return {name: tensor.detach() for name, tensor in tensors.items()}

    def variants(self) -> dict[str, Tensor]:
        mean, smooth = {"over_layers": "mean"}, {"difference": "smooth_l1"}
        changes = {
            "align_corners": {"align_corners": True},
            "coarser_threshold": {"smallest_layer": 2 * self.settings.smallest_layer},
            "every_layer": {"smallest_layer": 0.0},
            "every_timestep": {"until": 1.0},
            "heads_apart": {"heads": "apart"},
            "history": mean | smooth,
            "mean_of_layers": mean,
            "not_upsampled": {"upsampled": False},
            "smooth_l1": smooth,
            "temperature_1": {"temperature": 1.0},
        }
        return {
            f"flow.variant.{name}": self.loss(**change)[None] for name, change in changes.items()
        }

    def inside(self, layers: dict[str, FlowLayer]) -> dict[str, Tensor]:
        """Queries, keys, maps, fields and warped pictures of each layer."""
        tensors = {}
        for name, layer in layers.items():
            q, k, _ = layer.read
            scale = self.settings.temperature * q.shape[-1] ** 0.5
            field = flow_field(layer, self.settings.temperature).mean(1)
            q, k = q.to(field.dtype), k.to(field.dtype)
            attention = (q @ k.mT / scale).softmax(-1).mean(1)
            whole = F.interpolate(field, self.networks.size, mode="bilinear").clamp(-1, 1)
            tensors |= {
                f"flow.query.{name}": merge_heads(q),
                f"flow.key.{name}": merge_heads(k),
                f"flow.attn.{name}": attention,
                f"flow.attn_row0.{name}": attention[:1, :32],
                f"flow.field.{name}": field.permute(0, 2, 3, 1),
                f"flow.upsampled.{name}": whole.permute(0, 2, 3, 1),
                f"flow.warped.{name}": warp_by_flow(
                    self.garment.to(field.dtype), field, self.settings
                ),
            }
        return tensors
