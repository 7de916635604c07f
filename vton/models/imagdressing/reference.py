"""IMAGDressing-v1's part of `vton verify`: reference tensors recomputed by the code that trains and
samples.

Projector and identity tokens, garment features, one hybrid layer, whole UNets, a training step with
gradients, and the sampling runs of config.json with their plug-ins through the shared loop.
"""

from __future__ import annotations

from functools import cached_property

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from vton.config import SamplerConfig
from vton.diffusion.denoiser import Conditions, Known, Step
from vton.diffusion.objective import Objective
from vton.diffusion.sampling import double, sample
from vton.diffusion.solvers import make_solver
from vton.models.imagdressing.checkpoint import split_published
from vton.models.imagdressing.control import Control, latent_mask
from vton.models.imagdressing.faceid import FaceID
from vton.models.imagdressing.network import Dresser, Face, GarmentAdapter
from vton.models.reference import Kind, Reference, read_objective, read_resampler
from vton.weights.pretrained import load_state

EXACT = ("train.ref_unet_params_without_grad",)


def kind(name: str) -> Kind:
    if name.startswith("garment_wrong_t."):
        return Kind.CONTROL
    if name.endswith(".timesteps") or name.startswith(EXACT):
        return Kind.EXACT
    if name.endswith(".latents_steps"):
        return Kind.STEPS
    return Kind.GRADIENT if name.startswith("train.grad.") else Kind.CALL


def recompute(reference: Reference) -> dict[str, Tensor]:
    """Every tensor of outputs.safetensors under its name there."""
    networks = Networks(reference)
    with torch.no_grad():
        found = tokens(networks) | garment_features(networks) | dressing(networks)
        for name, settings in reference.config["calls"].items():
            found |= {
                f"{name}.{key}": value
                for key, value in Run(networks, name, settings).tensors().items()
            }
    found |= training_step(networks)
    return found


class Networks:
    """The folder's networks, without plug-ins, and its noise schedules."""

    def __init__(self, reference: Reference):
        self.reference, self.inputs, self.settings = reference, reference.inputs, reference.config
        self.unet = self.ready(
            UNet2DConditionModel(**self.settings["unet"]), reference.weights("base_unet")
        )
        parts, _ = split_published(reference.weights("checkpoint"), reference.folder)
        self.garment_unet = self.ready(
            UNet2DConditionModel(**self.settings["unet"]), parts["garment_unet"]
        )
        self.projector = self.ready(read_resampler(self.settings["proj"]), parts["projector"])
        self.adapter = self.ready(GarmentAdapter(self.unet), parts["adapter"])
        self.dresser = self.with_plugins()

    def ready(self, network: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
        load_state(network, weights, self.reference.folder)
        # diffusers' own .to warns of layers to be kept in float32, of which these networks have
        # none.
        return nn.Module.to(network, self.reference.device, self.reference.dtype).eval()

    def with_plugins(
        self, controls: dict[str, Control] | None = None, face: FaceID | None = None
    ) -> Dresser:
        return Dresser(self.unet, self.garment_unet, self.projector, self.adapter, controls, face)

    @cached_property
    def controlnet(self) -> ControlNetModel:
        return self.ready(
            ControlNetModel(**self.settings["controlnet"]), self.reference.weights("controlnet")
        )

    @cached_property
    def face(self) -> FaceID:
        weights = self.reference.weights("faceid")
        return self.ready(FaceID.shaped(weights, self.unet), weights)

    def objective(self, part: str, **settings) -> Objective:
        return read_objective(self.settings[part], **settings)

    def predict(self, z_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        return self.dresser.denoise(
            z_t, t, conditions, self.dresser.garment_features(conditions, t)
        )

    def training_conditions(self) -> Conditions:
        i = self.inputs
        return self.dresser.condition(
            text=i["text_embeds"],
            negative_text=i["negative_text_embeds"],
            garment_latents=i["garment_latents"],
            clip=i["clip_hidden"],
        )


def tokens(networks: Networks) -> dict[str, Tensor]:
    """Garment tokens, and identity tokens of a face and of nobody."""
    i, project = networks.inputs, networks.projector
    found = {
        "proj_tokens": project(i["clip_hidden"]),
        "proj_tokens_null": project(i["clip_hidden_null"]),
    }
    if "face_id_embeds" in i:
        identity, embedding, clip = (
            networks.face.image_proj,
            i["face_id_embeds"],
            i["face_clip_hidden"],
        )
        shortcut = networks.settings["faceid"]["shortcut_scale_example"]
        found["face.id_tokens"] = identity(embedding, clip)
        found["face.id_tokens_shortcut"] = identity(embedding, clip, shortcut)
        found["face.id_tokens_uncond"] = identity(
            torch.zeros_like(embedding), i["clip_hidden_null"]
        )
    return found


def garment_features(networks: Networks) -> dict[str, Tensor]:
    """What the garment UNet exports, also as the comparison for the recorded features at a wrong t."""
    taps = networks.dresser.garment_taps(
        networks.inputs["garment_latents"], networks.inputs["clip_hidden"]
    )
    return {
        f"{prefix}.{block}.attn1": tap
        for prefix in ("garment", "garment_wrong_t")
        for block, tap in taps.items()
    }


def noisy_latents(networks: Networks) -> Tensor:
    i = networks.inputs
    return networks.objective("training_scheduler").add_noise(
        i["person_latents"], i["noise"], i["timesteps"]
    )


def dressing(networks: Networks) -> dict[str, Tensor]:
    """The dressing UNet at several lambda and without a garment, and one layer alone on its input
    at lambda 1.
    """
    model, t, z_t = networks.dresser, networks.inputs["timesteps"], noisy_latents(networks)
    layer = networks.unet.get_submodule(networks.settings["hybrid_example_layer"])
    conditions, seen = networks.training_conditions(), []
    with layer.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0])):
        networks.predict(z_t, t, conditions)
    found = {"hybrid.input": seen[0], "hybrid.output_no_garment": layer(seen[0])}
    for name in networks.reference.expected:
        what, _, scale = name.rpartition("_scale_")
        if what in ("hybrid.output", "unet.eps"):
            scaled = conditions | {
                "garment_scale": torch.full_like(conditions["garment_scale"], float(scale))
            }
            garments = model.garments(scaled, model.garment_features(scaled, t))
            alone = what == "hybrid.output"
            found[name] = (
                layer(seen[0], garments=garments) if alone else networks.predict(z_t, t, scaled)
            )
    return found | {
        "unet.eps_no_garment": networks.predict(
            z_t, t, model.unconditional(conditions) | {"text": conditions["text"]}
        )
    }


def training_step(networks: Networks) -> dict[str, Tensor]:
    """Loss and gradients of one step; the dressing UNet is frozen."""
    i, objective = networks.inputs, networks.objective("training_scheduler")
    gamma = networks.settings["min_snr_gamma_example"]
    weighted = networks.objective("training_scheduler", loss_weight="min_snr", min_snr_gamma=gamma)
    x0, eps, t = i["person_latents"], i["noise"], i["timesteps"]
    z_t = noisy_latents(networks)
    networks.unet.requires_grad_(False)
    prediction = networks.predict(z_t, t, networks.training_conditions())
    loss = objective.loss(prediction, objective.noised(x0, eps, t)).mean()
    loss.backward()
    signal, noise = objective.signal_and_noise(t, x0.float())
    parts = {
        "ref_unet": networks.garment_unet,
        "proj": networks.projector,
        "adapter_modules": networks.adapter,
    }
    gradients = {
        f"train.grad.{part}.{name}": p.grad
        for part, network in parts.items()
        for name, p in network.named_parameters()
    }
    unread = sum(
        name.startswith("train.grad.ref_unet.") and grad is None for name, grad in gradients.items()
    )
    return {
        "train.alphas_cumprod": objective.alphas_cumprod,
        "train.snr": ((signal / noise) ** 2).flatten(),
        "train.noisy_latents": z_t,
        "train.noise_pred": prediction.detach(),
        "train.loss": loss.detach().view(1),
        "train.loss_min_snr": weighted.loss(prediction, weighted.noised(x0, eps, t))
        .mean()
        .detach()
        .view(1),
        "train.ref_unet_params_without_grad": torch.tensor([unread]),
        **{name: gradient for name, gradient in gradients.items() if gradient is not None},
    }


class Run:
    """One sampling run of config.json's `calls`. Its settings and name say which plug-ins it has.

    controlnet_conditioning_scale: a ControlNet, for inpainting where the name says so, else (or
    also) for the pose;
    ipa_scale: FaceID; "noface" in the name: FaceID's network without a face, which upstream cuts
    text tokens for.
    """

    def __init__(self, networks: Networks, name: str, settings: dict):
        self.networks, self.inputs, self.settings = networks, networks.inputs, settings
        self.count = len(networks.inputs["init_latents"])
        controlled = "controlnet_conditioning_scale" in settings
        inpainted, posed = (
            controlled and "inpaint" in name,
            controlled and ("pose" in name or "inpaint" not in name),
        )
        self.pictures = {}
        if posed:
            self.pictures["pose"] = self.inputs["control_image"]
        if inpainted:
            self.pictures["inpaint"] = self.inputs["inpaint_control_image"]
        self.has_face = "ipa_scale" in settings
        self.model = networks.with_plugins(
            {name: self.control() for name in self.pictures}, self.face("noface" in name)
        )
        noise = networks.settings["inference_scheduler"]
        self.sampler = SamplerConfig(
            solver="ddim",
            steps=settings["num_inference_steps"],
            guidance=settings["guidance_scale"],
            spacing=noise.get("timestep_spacing", "leading"),
            zero_terminal_snr=noise.get("rescale_betas_zero_snr", False),
        )
        self.objective = networks.objective("inference_scheduler")

    def control(self) -> Control:
        return Control(
            self.networks.controlnet,
            scale=self.settings["controlnet_conditioning_scale"],
            start=self.settings.get("control_guidance_start", 0.0),
            end=self.settings.get("control_guidance_end", 1.0),
        )

    def face(self, absent: bool) -> FaceID | None:
        if not self.has_face and not absent:
            return None
        face, settings = self.networks.face, self.settings
        face.cut_text = absent
        if self.has_face:
            face.scale, face.self_lora = settings["ipa_scale"], settings["s_lora_scale"]
            face.cross_lora = settings["c_lora_scale"]
        return face

    def conditions(self) -> Conditions:
        i, own = self.inputs, slice(self.count)
        known = None
        if "inpaint" in self.pictures:
            mask = latent_mask(i["inpaint_mask_image"], i["inpaint_image_latents"].shape[-2:])
            known = Known(mask, i["inpaint_image_latents"])
        return self.model.condition(
            text=i["text_embeds"][own],
            negative_text=i["negative_text_embeds"],
            garment_latents=i["garment_latents"][own],
            clip=i["clip_hidden"][own],
            garment_scale=self.settings["image_scale"],
            control=self.pictures,
            face=Face(i["face_id_embeds"], i["face_clip_hidden"], i["clip_hidden_null"])
            if self.has_face
            else None,
            known=known,
        )

    def tensors(self) -> dict[str, Tensor]:
        """The timesteps, both predictions and the ControlNets' residuals of the first step, latents
        after each step.
        """
        conditions, start, latents = self.conditions(), self.inputs["init_latents"], []
        sample(
            self.model,
            conditions,
            lambda: start,
            self.sampler,
            self.objective,
            watch=lambda step, prediction, z: latents.append(z),
        )
        timesteps = make_solver(self.sampler, self.objective, start.device).timesteps
        return {
            "timesteps": timesteps,
            "latents_steps": torch.cat(latents),
            **self.first_step(conditions, timesteps),
        }

    def first_step(self, conditions: Conditions, timesteps: Tensor) -> dict[str, Tensor]:
        model, start = self.model, self.inputs["init_latents"]
        both = double(model.unconditional(conditions), conditions)
        z, t = torch.cat([start, start]), timesteps[:1].expand(2 * self.count)
        features = model.garment_features(both, t, Step(0, len(timesteps)))
        uncond, cond = model.denoise(z, t, both, features).chunk(2)
        found = {"eps_uncond_step0": uncond, "eps_cond_step0": cond}
        if self.pictures:
            z = z.to(model.unet.dtype)
            residuals = model.control_residuals(z, t, both, features)
            if residuals is None:  # none acts at this step: all residuals are 0
                always = features | {f"control.{name}": torch.zeros(()) for name in self.pictures}
                residuals = model.control_residuals(z, t, both, always)
            found |= {f"control_down_{k:02}": residual for k, residual in enumerate(residuals[:-1])}
            found["control_mid"] = residuals[-1]
        return found
