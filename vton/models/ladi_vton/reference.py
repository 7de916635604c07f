"""LaDI-VTON's part of `vton verify`: tensors recomputed by the code that trains and samples.

Preparation, towers and adapter, autoencoder with EMASC, single UNet calls, losses and gradients of
the three stages, and runs of the shared sampler.
"""

from __future__ import annotations

import re
from functools import cached_property

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from vton.config import SamplerConfig
from vton.data.pose import DRESSCODE_CANVAS, FROM_BODY_25, VITON_HD_CANVAS
from vton.data.ranges import to_unit
from vton.diffusion.denoiser import Conditions, Step
from vton.diffusion.objective import Objective
from vton.diffusion.sampling import double
from vton.models.codecs import KLCodec, latent_mask
from vton.models.encoders import ClipImageEncoder
from vton.models.ladi_vton.building import widen_base
from vton.models.ladi_vton.emasc import EMASC, SkipChannels, decode_with_skips, skip_features
from vton.models.ladi_vton.network import LadiUNet
from vton.models.ladi_vton.pose import pose_latents, pose_maps
from vton.models.ladi_vton.words import InversionAdapter, clip_pixels, encode_words
from vton.models.perceptual import PerceptualLoss
from vton.models.reference import Kind, Reference, read_objective, run_sampler
from vton.weights.pretrained import load_state

HEAT_SIGMA = 9.0  # px, not among the settings
# Recorded mistakes, and which right tensor each must differ from.
CONTROLS = {
    "control.clip_pixels_rescaled_twice": "prep.clip_pixels",
    "control.noise_pred_cloth_before_pose": "unet.noise_pred",
    "control.noise_pred_uncond_text_only": "unet.noise_pred_uncond",
    "control.text_states_unreplaced": "text.states",
}


def kind(name: str) -> Kind:
    if name.startswith("control."):
        return Kind.CONTROL
    if name.endswith(".timesteps") or name == "train.mask":
        return Kind.EXACT
    if name.endswith(".latents_steps"):
        return Kind.STEPS
    return Kind.GRADIENT if ".grad." in name else Kind.CALL


def recompute(reference: Reference) -> dict[str, Tensor]:
    """Every tensor of outputs.safetensors under its name there."""
    networks = Networks(reference)
    with torch.no_grad():
        tensors = preparation(networks)
        tensors |= words_and_text(networks)
        tensors |= autoencoder(networks)
        tensors |= single_calls(networks)
        for name, settings in networks.settings["runs"].items():
            tensors |= sampling_run(networks, name, settings)
    tensors |= stage_1(networks)
    tensors |= stage_2(networks)
    tensors |= stage_3(networks, "stage3", dropped=False)
    tensors |= stage_3(networks, "stage3_dropped", dropped=True)
    for control, right in CONTROLS.items():
        tensors[control] = tensors[right]
    return tensors


class Networks:
    """The folder's networks, and what several groups compute from its inputs.

    Autoencoder, EMASC and losses are in float32 where the others run in half precision.
    """

    def __init__(self, reference: Reference):
        self.reference = reference
        self.inputs = reference.inputs
        self.settings = reference.config
        self.objective: Objective = read_objective(self.settings["scheduler"])
        self.full = torch.promote_types(reference.dtype, torch.float32)
        self.adapter.requires_grad_(True)

    def fresh_unet(self) -> UNet2DConditionModel:
        return UNet2DConditionModel(**self.settings["unet"])

    @cached_property
    def model(self) -> LadiUNet:
        return LadiUNet(self.reference.load(self.fresh_unet(), "unet"))

    @cached_property
    def base(self) -> LadiUNet:
        """The inpainting UNet of stage 2, widened."""
        weights = dict(self.reference.weights("unet"))
        weights["conv_in.weight"] = self.widened
        weights["conv_in.bias"] = self.reference.weights("base_conv_in")["conv_in.bias"]
        return LadiUNet(self.reference.ready(self.fresh_unet(), weights))

    @cached_property
    def widened(self) -> Tensor:
        base = self.reference.weights("base_conv_in")["conv_in.weight"]
        return widen_base(base, self.settings["unet"]["in_channels"])

    @cached_property
    def clip(self) -> ClipImageEncoder:
        tower = CLIPVisionModelWithProjection(CLIPVisionConfig(**self.settings["vision_encoder"]))
        self.reference.ready(tower, without_position_ids(self.reference.weights("vision_encoder")))
        return ClipImageEncoder(tower).to(self.reference.device)

    @cached_property
    def adapter(self) -> InversionAdapter:
        settings = self.settings["inversion_adapter"]
        adapter = InversionAdapter(
            self.clip.tower.config,
            output=settings["output_dim"],
            words=settings["num_vstar"],
            layers=settings["num_encoder_layers"],
            hidden=settings["hidden_dim"],
        )
        return self.reference.load(adapter, "inversion_adapter")

    @cached_property
    def text(self) -> CLIPTextModel:
        encoder = CLIPTextModel(CLIPTextConfig(**self.settings["text_encoder"]))
        # Versions of transformers differ in whether these names begin with text_model.
        prefixed = any(name.startswith("text_model.") for name in encoder.state_dict())
        weights = {}
        for name, tensor in without_position_ids(self.reference.weights("text_encoder")).items():
            weights[name if prefixed else name.removeprefix("text_model.")] = tensor
        return self.reference.ready(encoder, weights).requires_grad_(False)

    @cached_property
    def codec(self) -> KLCodec:
        vae = AutoencoderKL(**self.settings["vae"])
        vae = self.reference.load(vae, "vae", self.full).requires_grad_(False)
        return KLCodec(vae)

    def emasc(self, kind: str = "nonlinear") -> EMASC:
        settings = self.settings["emasc"]
        channels = SkipChannels(settings["in_channels"], settings["out_channels"])
        part = "emasc_linear" if kind == "linear" else "emasc"
        return self.reference.load(EMASC(channels, kind), part, self.full)

    @cached_property
    def perceptual(self) -> PerceptualLoss:
        settings = self.settings["vgg"]
        loss = PerceptualLoss(None, channels=tuple(settings["channels"]))
        loss.SIDE = settings["short_side"]
        load_state(loss.backbone, self.reference.weights("vgg"), "weights_vgg.safetensors")
        return loss.to(self.reference.device, self.full).requires_grad_(False)

    # ---- from the inputs ----

    @cached_property
    def size(self) -> tuple[int, int]:
        return tuple(self.inputs["image"].shape[-2:])

    @cached_property
    def picture(self) -> Tensor:
        return self.inputs["image"].to(self.full)

    @cached_property
    def mask(self) -> Tensor:
        return self.inputs["inpaint_mask"].to(self.full)

    @cached_property
    def masked_picture(self) -> Tensor:
        return self.picture * (1 - self.mask)

    def latents(self, picture: Tensor, noise: str) -> Tensor:
        """A scaled draw from the posterior, its noise from the inputs."""
        posterior = self.codec.vae.encode(picture.to(self.full)).latent_dist
        drawn = posterior.mean + posterior.std * self.inputs[noise].to(self.full)
        return drawn * self.codec.scaling

    def decoded(self, z: Tensor, skips: list[Tensor]) -> Tensor:
        if skips:
            return decode_with_skips(self.codec, z, skips)
        return self.codec.vae.decode(z.to(self.full) / self.codec.scaling).sample

    @cached_property
    def x0(self) -> Tensor:
        return self.latents(self.picture, "image_noise")

    @cached_property
    def joints(self) -> tuple[Tensor, Tensor]:
        """BODY_25 as COCO-18: x and y in pixels of the picture, and which were found."""
        rows = self.inputs["keypoints_body25"].double()[:, torch.from_numpy(FROM_BODY_25)]
        return in_pixels(rows, VITON_HD_CANVAS, self.size)

    def pose(self, joints: tuple[Tensor, Tensor]) -> Tensor:
        maps = pose_maps(*joints, self.size, HEAT_SIGMA)
        return pose_latents(maps, self.x0.shape[-2:])

    def words(self) -> Tensor:
        """The pseudo-words of the recorded pixels, with gradients to the adapter."""
        with torch.no_grad():
            states = self.clip.tower(self.inputs["clip_pixels"]).last_hidden_state
        return self.adapter(states)

    def text_states(self, words: Tensor) -> Tensor:
        placeholder = self.settings["placeholder_token_id"]
        return encode_words(self.text, self.inputs["input_ids"], words, placeholder)

    @cached_property
    def empty_text(self) -> Tensor:
        return self.text(self.inputs["input_ids_empty"]).last_hidden_state

    def conditions(self, text: Tensor, pose: bool = True) -> Conditions:
        maps = self.pose(self.joints)
        conditions = self.model.condition(
            mask=latent_mask(self.mask, self.x0.shape[-2:]),
            masked=self.latents(self.masked_picture, "masked_noise"),
            pose=maps if pose else torch.zeros_like(maps),
            garment=self.latents(self.inputs["warped_cloth"], "cloth_noise"),
            text=text,
            empty_text=self.empty_text,
        )
        return conditions

    def call(
        self,
        model: LadiUNet,
        z: Tensor,
        t: Tensor,
        conditions: Conditions,
        step: Step | None = None,
    ) -> Tensor:
        return model.denoise(z, t, conditions, model.garment_features(conditions, t, step))


def without_position_ids(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """CLIP's files of older versions hold a buffer that current classes make themselves."""
    return {name: x for name, x in weights.items() if not name.endswith("position_ids")}


def in_pixels(
    rows: Tensor, canvas: tuple[int, int], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Joints (B, J, 2) scaled from a canvas (width, height) to a picture (H, W), and which of them
    have a coordinate above 0.
    """
    points = rows[..., :2]
    height, width = size
    scale = points.new_tensor([width / canvas[0], height / canvas[1]])
    return points * scale, (points > 0).any(-1)


# ---- groups ----


def preparation(networks: Networks) -> dict[str, Tensor]:
    i = networks.inputs
    pixels = clip_pixels(networks.clip.to(networks.full), i["cloth"].to(networks.full))
    networks.clip.to(networks.reference.dtype)
    tensors = {
        "prep.clip_pixels": pixels,
        "prep.pose_latent": networks.pose(networks.joints),
        "train.mask": latent_mask(networks.mask, networks.x0.shape[-2:]),
        "train.noisy_latents": networks.objective.add_noise(
            networks.x0, i["noise"].to(networks.full), i["timesteps"]
        ),
    }
    if "keypoints_coco18" in i:
        rows = i["keypoints_coco18"].double()
        joints = in_pixels(rows, DRESSCODE_CANVAS, networks.size)
        tensors["prep.pose_latent_dresscode"] = networks.pose(joints)
    for name in networks.reference.expected:
        shown = re.fullmatch(r"prep\.pose_map_row(\d+)_joints((?:_\d+)+)", name)
        if shown:
            numbers = [int(number) for number in shown[2].split("_")[1:]]
            maps = pose_maps(*networks.joints, networks.size, HEAT_SIGMA)
            tensors[name] = maps[int(shown[1]), numbers]
    return tensors


def words_and_text(networks: Networks) -> dict[str, Tensor]:
    words = networks.words()
    pixels = networks.inputs["clip_pixels"]
    return {
        "vision.last_hidden_state": networks.clip.tower(pixels).last_hidden_state,
        "adapter.words": words,
        "text.states": networks.text_states(words),
        "text.states_empty": networks.empty_text,
    }


def autoencoder(networks: Networks) -> dict[str, Tensor]:
    codec, i = networks.codec, networks.inputs
    features = skip_features(codec, networks.masked_picture)
    skips = networks.emasc()(features, networks.mask)
    tensors = {
        "vae.image_latents": networks.x0,
        "vae.masked_latents": networks.latents(networks.masked_picture, "masked_noise"),
        "vae.cloth_latents": networks.latents(i["warped_cloth"], "cloth_noise"),
        "vae.decoded": networks.decoded(networks.x0, []),
        "emasc.decoded": decode_with_skips(codec, networks.x0, skips),
    }
    linear = networks.emasc("linear")(features, networks.mask)
    tensors["emasc_linear.decoded"] = decode_with_skips(codec, networks.x0, linear)
    for row in range(len(networks.x0)):
        for number, (feature, skip) in enumerate(zip(features, skips, strict=True), start=1):
            tensors[f"emasc.input_{number}_row{row}"] = feature[row : row + 1]
            tensors[f"emasc.skip_{number}_row{row}"] = skip[row : row + 1]
    return tensors


def single_calls(networks: Networks) -> dict[str, Tensor]:
    """One call of each branch, of the UNet without garment, and of the widened base."""
    i, model = networks.inputs, networks.model
    conditions = networks.conditions(networks.text_states(networks.words()))
    z = networks.objective.add_noise(networks.x0, i["noise"].to(networks.full), i["timesteps"])
    t = i["timesteps"]
    cond = networks.call(model, z, t, conditions)
    uncond = networks.call(model, z, t, model.unconditional(conditions))
    scale = networks.settings["runs"]["full"]["guidance_scale"]
    features = model.garment_features(conditions, t)
    return {
        "unet.input": model.stacked(z, conditions, features),
        "unet.noise_pred": cond,
        "unet.noise_pred_uncond": uncond,
        "unet.noise_pred_guided": uncond + scale * (cond - uncond),
        "unet27.noise_pred": without_garment(networks, z, t, conditions),
        "widen.conv_in.weight": networks.widened,
        "widen.noise_pred": networks.call(networks.base, z, t, conditions),
    }


def without_garment(networks: Networks, z: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
    """The variant without channels for the garment: the same weights, conv_in cut."""
    weights = dict(networks.reference.weights("unet"))
    latent_channels = networks.x0.shape[1]
    inputs = networks.settings["unet"]["in_channels"] - latent_channels
    weights["conv_in.weight"] = weights["conv_in.weight"][:, :inputs]
    unet = UNet2DConditionModel(**networks.settings["unet"] | {"in_channels": inputs})
    model = LadiUNet(networks.reference.ready(unet, weights))
    conditions = {name: tensor for name, tensor in conditions.items() if name != "garment"}
    return networks.call(model, z, t, conditions)


def sampling_run(networks: Networks, name: str, settings: dict) -> dict[str, Tensor]:
    model = LadiUNet(networks.model.unet, settings["cloth_cond_rate"])
    text = networks.text_states(networks.words())
    conditions = networks.conditions(text, pose=not settings["no_pose"])
    scale = settings["guidance_scale"]
    scheduler = networks.settings["scheduler"]
    sampler = SamplerConfig(
        solver="ddim",
        steps=settings["num_inference_steps"],
        guidance=max(scale, 1.0),  # their pipeline makes one pass at w <= 1
        spacing=scheduler.get("timestep_spacing", "leading"),
    )
    networks.reference.check_scheduler(sampler, networks.objective)
    start = networks.inputs["init_latents"]
    run = run_sampler(model, conditions, [start], sampler, networks.objective)
    skips = []
    if settings["emasc"]:
        features = skip_features(networks.codec, networks.masked_picture)
        skips = networks.emasc(settings["emasc"])(features, networks.mask)
    picture = networks.decoded(run.latents[-1], skips)
    tensors = {
        "timesteps": run.timesteps,
        "latents_steps": torch.stack(run.latents),
        "image": to_unit(picture).clamp(0, 1),
    }
    if scale > 1:
        both = double(model.unconditional(conditions), conditions)
        z = torch.cat([start, start])
        t = run.timesteps[:1].expand(len(z))
        first = Step(0, settings["num_inference_steps"])
        uncond, cond = networks.call(model, z, t, both, first).chunk(2)
        tensors |= {"noise_pred_uncond_step0": uncond, "noise_pred_cond_step0": cond}
    else:
        tensors["noise_pred_step0"] = run.predictions[0]
    return {f"{name}.{key}": tensor for key, tensor in tensors.items()}


# ---- training ----


def stage_1(networks: Networks) -> dict[str, Tensor]:
    """EMASC on reconstructions of the person: L1 and VGG19's distance."""
    emasc = networks.emasc().requires_grad_(True)
    skips = emasc(skip_features(networks.codec, networks.masked_picture), networks.mask)
    decoded = decode_with_skips(networks.codec, networks.x0, skips)
    picture = networks.picture
    l1, vgg = F.l1_loss(decoded, picture), networks.perceptual(decoded, picture)
    loss = l1 + networks.settings["vgg"]["weight"] * vgg
    loss.backward()
    tensors = {"stage1.l1": l1, "stage1.vgg": vgg, "stage1.loss": loss}
    return as_recorded(networks, tensors) | gradients("stage1.grad", emasc)


def stage_2(networks: Networks) -> dict[str, Tensor]:
    """The adapter alone, read by the base UNet: neither pose nor garment."""
    model, adapter = networks.base, networks.adapter
    model.requires_grad_(False)
    adapter.zero_grad()
    conditions = networks.conditions(networks.text_states(networks.words()))
    everything = torch.ones(len(networks.x0), dtype=torch.bool)
    conditions = model.without(conditions, {"pose": everything, "garment": everything})
    prediction, loss = noise_loss(networks, model, conditions)
    loss.backward()
    tensors = {"stage2.loss": loss, "stage2.noise_pred": prediction}
    return as_recorded(networks, tensors) | gradients("stage2.grad", adapter)


def stage_3(networks: Networks, name: str, dropped: bool) -> dict[str, Tensor]:
    """UNet and adapter; dropped: without the parts that the inputs' flags name."""
    i, model, adapter = networks.inputs, networks.model, networks.adapter
    model.requires_grad_(True).zero_grad()
    adapter.zero_grad()
    conditions = networks.conditions(networks.text_states(networks.words()))
    if dropped:
        rows = {"text": "drop_text", "garment": "drop_cloth", "pose": "drop_pose"}
        conditions = model.without(conditions, {part: i[flag] > 0 for part, flag in rows.items()})
    prediction, loss = noise_loss(networks, model, conditions)
    loss.backward()
    tensors = as_recorded(networks, {f"{name}.loss": loss, f"{name}.noise_pred": prediction})
    tensors |= gradients(f"{name}.grad.unet", model.unet)
    return tensors | gradients(f"{name}.grad.inversion_adapter", adapter)


def noise_loss(
    networks: Networks, model: LadiUNet, conditions: Conditions
) -> tuple[Tensor, Tensor]:
    i, objective = networks.inputs, networks.objective
    noised = objective.noised(networks.x0, i["noise"].to(networks.full), i["timesteps"])
    prediction = networks.call(model, noised.z_t, noised.t, conditions)
    return prediction, objective.loss(prediction, noised).mean()


def as_recorded(networks: Networks, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without history; scalars in the shape that the folder has them in."""
    shaped = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        expected = networks.reference.expected.get(name)
        if expected is not None and tensor.numel() == 1 == expected.numel():
            tensor = tensor.reshape(expected.shape)
        shaped[name] = tensor
    return shaped


def gradients(prefix: str, network: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            found[f"{prefix}.{name}"] = parameter.grad.clone()
    return found
