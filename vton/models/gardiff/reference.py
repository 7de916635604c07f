"""GarDiff's part of `vton verify`: reference tensors recomputed by the code that trains and
samples.

The released script from pictures to picture, one UNet call from inside, the decoupled adapter, the
July script with its blended sampling, pasting back, and the paper's formulas. A folder may hold any
of these groups.
"""

from __future__ import annotations

from functools import cached_property

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from vton.config import SamplerConfig
from vton.diffusion.denoiser import Conditions, Denoiser
from vton.diffusion.objective import Objective
from vton.diffusion.sampling import double, sample
from vton.diffusion.solvers import make_solver
from vton.models.codecs import KLCodec
from vton.models.encoders import ClipImageEncoder
from vton.models.gardiff.checkpoint import adapter_sections, fill_adapter
from vton.models.gardiff.losses import (
    DISTS,
    appearance_loss,
    high_frequency_loss,
    sobel,
    sobel_magnitude,
)
from vton.models.gardiff.network import GarmentFocusedProcessor
from vton.models.gardiff.released import (
    DecoupledUNet,
    LegacyUNet,
    ReleasedUNet,
    clip_pixels,
    composite,
    feathered,
    paste_back,
)
from vton.models.reference import Kind, Reference, read_objective, read_resampler
from vton.models.warp.tps import ThinPlateSpline, lattice, warp
from vton.weights.pretrained import load_state

AFTER_STEP = "legacy12.latents_after_step"
RUNS = ("latents_per_step", "final_latents", "final_image", "noise_pred_last", AFTER_STEP)
OPAQUE = 255  # the July script counts no other value of its warp mask


def kind(name: str) -> Kind:
    if name.endswith("timesteps") or name.startswith("paste."):
        return Kind.EXACT
    if name == "legacy12.final_image_u8":
        return Kind.BYTES
    return Kind.STEPS if name.startswith(RUNS) else Kind.CALL


@torch.no_grad()
def recompute(reference: Reference) -> dict[str, Tensor]:
    """Every tensor of the outputs under its name there."""
    networks, names = Networks(reference), set(reference.expected)

    def wanted(*starts: str) -> bool:
        return any(name.startswith(starts) for name in names)

    found: dict[str, Tensor] = {}
    if wanted("prompt_embeds", "latents_per_step"):
        found |= released_script(networks)
    if wanted("unet."):
        found |= unet_call(networks)
    if wanted("decoupled."):
        found |= decoupled_adapter(networks)
    if wanted("legacy12."):
        found |= july_script(networks)
    if wanted("paste."):
        found |= pasting(networks.inputs)
    if wanted("x0_hat", "gf_out", "dists", "sobel", "tps"):
        found |= formulas(networks)
    return found


class Networks:
    """The folder's networks and its noise schedule; the VAE in float32 whatever the others run in."""

    def __init__(self, reference: Reference):
        self.reference, self.inputs, self.settings = reference, reference.inputs, reference.config

    def ready(
        self, network: nn.Module, weights: dict[str, Tensor], dtype: torch.dtype | None = None
    ) -> nn.Module:
        load_state(network, weights, self.reference.folder)
        # diffusers' own .to warns of layers to be kept in float32, of which these networks have
        # none.
        return nn.Module.to(network, self.reference.device, dtype or self.reference.dtype).eval()

    def unet(self, settings: str = "unet", weights: str = "unet") -> UNet2DConditionModel:
        return self.ready(
            UNet2DConditionModel(**self.settings[settings]), self.reference.weights(weights)
        )

    @cached_property
    def released(self) -> ReleasedUNet:
        return ReleasedUNet(self.unet())

    @cached_property
    def codec(self) -> KLCodec:
        vae = AutoencoderKL(**self.settings["vae"])
        return KLCodec(self.ready(vae, self.reference.weights("vae"), torch.float32))

    @cached_property
    def clip(self) -> ClipImageEncoder:
        tower = CLIPVisionModelWithProjection(CLIPVisionConfig(**self.settings["vision_encoder"]))
        self.ready(tower, self.reference.weights("vision_encoder"))
        return ClipImageEncoder(tower).to(self.reference.device)

    @cached_property
    def text(self) -> Tensor:
        """(B, L, D): what the text encoder makes of the caption's ids."""
        encoder, weights = CLIPTextModel(CLIPTextConfig(**self.settings["text_encoder"])), {}
        prefixed = any(name.startswith("text_model.") for name in encoder.state_dict())
        for name, tensor in self.reference.weights("text_encoder").items():
            weights[name if prefixed else name.removeprefix("text_model.")] = tensor
        return self.ready(encoder, weights)(self.inputs["caption_input_ids"]).last_hidden_state

    @cached_property
    def objective(self) -> Objective:
        return read_objective(self.settings["scheduler"])

    def picture(self, name: str, rows: slice = slice(None)) -> Tensor:
        """Bytes as a picture in [-1, 1], float32."""
        return self.inputs[name][rows].float() / 127.5 - 1

    def latents(self, image: Tensor, noise: str) -> Tensor:
        """A scaled draw from the posterior, its noise from the inputs."""
        posterior = self.codec.posterior(image)
        drawn = posterior.mean + posterior.std * self.inputs[noise].float()
        return (drawn * self.codec.scaling).to(self.reference.dtype)

    def decoded(self, z: Tensor) -> Tensor:
        """Pictures in [0, 1]."""
        return (self.codec.decode(z) / 2 + 0.5).clamp(0, 1)

    def run(
        self,
        network: Denoiser,
        conditions: Conditions,
        start: Tensor,
        sampler: SamplerConfig,
    ):
        """Timesteps; predictions and latents of every step, from the shared sampling loop."""
        predictions, latents = [], []
        sample(
            network,
            conditions,
            lambda: start,
            sampler,
            self.objective,
            watch=lambda step, prediction, z: (predictions.append(prediction), latents.append(z)),
        )
        return make_solver(sampler, self.objective, start.device).timesteps, predictions, latents


def released_script(networks: Networks) -> dict[str, Tensor]:
    """mode=release: tokens, composite, DDIM steps without guidance, decoded picture."""
    i, network, settings = networks.inputs, networks.released, networks.settings["scheduler"]
    warped, garment = networks.picture("warped_cloth_u8"), networks.picture("cloth_u8")
    both = composite(networks.picture("image_u8"), warped, i["inpaint_mask"].float())
    pixels = {
        rescale: clip_pixels(networks.clip, garment, rescale) for rescale in ("single", "release")
    }
    clip = {
        rescale: networks.clip.tower(x.to(network.unet.dtype)).image_embeds
        for rescale, x in pixels.items()
    }
    posterior, token_latents = (
        networks.codec.posterior(warped),
        networks.latents(warped, "noise_vae_token"),
    )
    conditions = network.condition(
        begin=networks.text[:, :1],
        clip=clip["release"][:, None],
        garment=token_latents,
        z_comp=networks.latents(both, "noise_masked_image"),
    )
    sampler = SamplerConfig(
        solver="ddim",
        steps=networks.settings["num_inference_steps"],
        spacing=settings.get("timestep_spacing", "leading"),
        clip_sample=settings.get("clip_sample_range", 1.0) if settings["clip_sample"] else 0.0,
    )
    start = i["noise_init"]
    timesteps, predictions, latents = networks.run(network, conditions, start, sampler)
    return {
        "timesteps": timesteps,
        "clip_pixel_values": pixels["release"],
        "clip_image_embeds": clip["release"],
        "clip_image_embeds_single_rescale": clip["single"],
        "text_hidden_states": networks.text,
        "warped_latent_mean": posterior.mean,
        "warped_latent_logvar": posterior.logvar,
        "vae_token_latents": token_latents,
        "composite_image": both,
        "masked_image_latents": conditions["z_comp"],
        "garment_tokens": conditions["tokens"][:, 1:],
        "prompt_embeds": conditions["tokens"],
        "unet_input_step0": network.stacked(start, conditions),
        "noise_pred_step0": predictions[0],
        "noise_pred_last": predictions[-1],
        "latents_per_step": torch.stack(latents),
        "final_latents": latents[-1],
        "final_image": networks.decoded(latents[-1]),
    }


def unet_call(networks: Networks) -> dict[str, Tensor]:
    """One call of the released UNet, watched at its parts and inside one cross-attention."""
    i, unet, seen = networks.inputs, networks.released.unet, {}
    probe = networks.settings["probe_attn2"]
    watched = {
        "conv_in": "conv_in",
        "time_embedding": "time_embedding",
        "down_block0_out": "down_blocks.0",
        "mid_block_out": "mid_block",
        "attn2_key": f"{probe}.to_k",
        "attn2_value": f"{probe}.to_v",
        "attn2_out": probe,
    }

    def remember(name: str):
        def hook(module, arguments, output):
            seen[f"unet.{name}"] = output[0] if isinstance(output, tuple) else output
            if name == "attn2_out":
                seen["unet.attn2_hidden_in"] = arguments[0]

        return hook

    handles = [
        unet.get_submodule(path).register_forward_hook(remember(name))
        for name, path in watched.items()
    ]
    seen["unet.unet_out"] = networks.released(
        i["unet_sample"], i["unet_timestep"], i["unet_tokens"]
    )
    for handle in handles:
        handle.remove()
    return seen


def decoupled_adapter(networks: Networks) -> dict[str, Tensor]:
    """mode=decoupled: projection head, whole UNets at several scales, one layer with masks and
    without adapter.
    """
    i, weights, settings = networks.inputs, networks.reference.weights("adapter"), networks.settings
    embedding, text = i["adapter_image_embeds"], i["adapter_text_tokens"]
    context = len(weights["image_proj.norm.weight"])
    count = len(weights["image_proj.proj.weight"]) // context
    network = DecoupledUNet(networks.unet(), embedding.shape[-1], count)
    fill_adapter(network, adapter_sections(weights), networks.reference.folder)
    nn.Module.to(network, embedding.device, embedding.dtype).eval()
    resampler = read_resampler(settings["resampler"])
    own = {
        name.removeprefix("resampler."): x
        for name, x in weights.items()
        if name.startswith("resampler.")
    }
    found = {"decoupled.resampler_tokens": networks.ready(resampler, own)(i["resampler_features"])}

    channels = settings["unet"]["out_channels"]
    z_t, z_comp = i["unet_sample"].split([channels, i["unet_sample"].shape[1] - channels], dim=1)
    conditions = network.condition(text=text, negative_text=text[:1], clip=embedding, z_comp=z_comp)
    found["decoupled.image_proj_tokens"] = conditions["garment"]
    found["decoupled.image_proj_tokens_uncond"] = network.unconditional(conditions)["garment"]

    layer, seen = network.unet.get_submodule(settings["probe_attn2"]), []
    with layer.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0])):
        network.denoise(z_t, i["unet_timestep"], conditions, {})
    hidden, tokens = seen[0], torch.cat([text, conditions["garment"]], dim=1)
    found["decoupled.attn2_hidden_in"] = hidden
    found["decoupled.attn2_out_textonly"] = layer(hidden, text)
    for name, mask in (("keymask", "attn_key_mask"), ("querykeymask", "attn_query_key_mask")):
        masked = layer(hidden, tokens, attention_mask=i[mask], adapter_length=count)
        found[f"decoupled.attn2_out_{name}"] = masked
    for name in networks.reference.expected:
        what, _, scale = name.removesuffix("_same_input").rpartition("_scale")
        if what in ("decoupled.unet_out", "decoupled.attn2_out"):
            network.set_scale(float(scale.replace("p", ".")))
            whole = what == "decoupled.unet_out"
            found[name] = (
                network.denoise(z_t, i["unet_timestep"], conditions, {})
                if whole
                else layer(hidden, tokens, adapter_length=count)
            )
    return found


def july_script(networks: Networks) -> dict[str, Tensor]:
    """mode=legacy12 on the first sample: both guidance branches at the start, then the blended run."""
    i, expected = networks.inputs, networks.reference.expected
    guidance = networks.settings["legacy_image_guidance_scale"]
    network = LegacyUNet(networks.unet("unet12", "unet_legacy12"))
    warped, agnostic = (
        networks.picture("warped_cloth_u8", slice(1)),
        networks.picture("masked_person_u8"),
    )
    codec = networks.codec
    x_a, x_w = (
        (codec.encode(image) / codec.scaling).to(network.unet.dtype) for image in (agnostic, warped)
    )
    conditions = network.condition(
        begin=networks.text[:1, :1],
        clip=i["legacy_clip_embeds"][:, None],
        garment=networks.latents(warped, "noise_legacy_token"),
        x_a=x_a,
        x_w=x_w,
        mask=(i["legacy_warp_mask_u8"] == OPAQUE).to(x_w.dtype)[None, None],
        blended=networks.latents(warped, "noise_legacy_cloth"),
    )
    sampler = SamplerConfig(
        solver="unipc",
        steps=len(expected["legacy12.timesteps"]),
        guidance=guidance if guidance >= 1 else 1.0,  # below 1 the script has none
        spacing="linspace",
        final_sigma="sigma_min",
    )
    start = i["noise_legacy_init"]
    timesteps, _, latents = networks.run(network, conditions, start, sampler)
    both = double(
        conditions, network.unconditional(conditions)
    )  # the script's order; the sampler's is the other
    z = torch.cat([start, start])
    first = network.denoise(z, timesteps[:1].expand(len(z)), both, {})
    cond, uncond = first.chunk(2)
    picture = (networks.decoded(latents[-1]) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    steps = {
        name: latents[int(name.removeprefix(AFTER_STEP))]
        for name in expected
        if name.startswith(AFTER_STEP)
    }
    return {
        "legacy12.timesteps": timesteps,
        "legacy12.prompt_embeds": conditions["tokens"],
        "legacy12.unet12_input_step0": network.stacked(z, both),
        "legacy12.unet12_out_step0": first,
        "legacy12.guided_noise_step0": uncond + guidance * (cond - uncond),
        "legacy12.final_image_u8": picture,
        **steps,
    }


def pasting(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    mask = (inputs["paste_mask_u8"] > 127).float()[None, None]
    generated, original = (
        inputs[f"paste_{which}_u8"].permute(2, 0, 1)[None].float() for which in ("pred", "gt")
    )
    return {
        "paste.fuse_mask_u8": feathered(mask)[0, 0],
        "paste.fused_u8": paste_back(generated, original, mask)[0].permute(1, 2, 0),
    }


def formulas(networks: Networks) -> dict[str, Tensor]:
    """The paper's equations, and the spline of a learned warp."""
    i = {name.removeprefix("d_"): x for name, x in networks.inputs.items() if name.startswith("d_")}
    objective, weights = networks.objective, networks.reference.weights("derived")
    x_t, t = objective.add_noise(i["x0"], i["eps"], i["t"]), i["t"]
    signal, noise = objective.signal_and_noise(t, i["x0"])
    prediction, truth, mask = i["pred_img"], i["gt_img"], i["warp_mask"]
    gx, gy = sobel(truth)
    dists = DISTS(tuple(networks.settings["dists_channels"][1:]))
    own = {
        name.removeprefix("dists."): x for name, x in weights.items() if name.startswith("dists.")
    }
    dists = networks.ready(dists, own)
    return {
        "xt": x_t,
        "sqrt_alpha_prod": signal.flatten(),
        "sqrt_one_minus_alpha_prod": noise.flatten(),
        "x0_hat": objective.clean(x_t, t, i["eps_pred"]),
        "sobel_gx_gt": gx,
        "sobel_gy_gt": gy,
        "sobel_mag_gt": sobel_magnitude(truth),
        "dists": dists((prediction + 1) / 2, (truth + 1) / 2),
        "dists_masked": dists((prediction + 1) / 2 * mask, (truth + 1) / 2 * mask),
        "loss_highfreq": high_frequency_loss(prediction, truth, mask),
        "loss_appearance": appearance_loss(prediction, truth, mask, dists),
        **garment_focused(networks, i, weights),
        **spline(networks, i),
    }


def garment_focused(
    networks: Networks, i: dict[str, Tensor], weights: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Eq. 5 and 6 by one cross-attention layer."""
    theirs = {
        "to_q": "to_q",
        "to_k": "to_k_clip",
        "to_v": "to_v_clip",
        "to_out.0": "to_out.0",
        "processor.to_k_adapter": "to_k_vae",
        "processor.to_v_adapter": "to_v_vae",
    }
    own = {f"{ours}.weight": weights[f"gf.{name}.weight"] for ours, name in theirs.items()}
    own["to_out.0.bias"] = weights["gf.to_out.0.bias"]
    hidden, heads = i["attn_hidden"], networks.settings["gf"]["heads"]
    inner, context = own["to_k.weight"].shape
    found = {}
    for name, masked in (
        ("nomask", (False, False)),
        ("mask_both", (True, True)),
        ("mask_vae", (False, True)),
    ):
        layer = Attention(hidden.shape[-1], context, heads=heads, dim_head=inner // heads)
        layer.set_processor(GarmentFocusedProcessor(layer, masked))
        tokens = torch.cat([i["clip_tokens"], i["vae_tokens"]], dim=1)
        masks = {hidden.shape[1]: i["attn_mask"][..., None]}
        layer = networks.ready(layer, own)
        length = i["vae_tokens"].shape[1]
        found[f"gf_out_{name}"] = layer(hidden, tokens, adapter_length=length, query_masks=masks)
    return found


def spline(networks: Networks, i: dict[str, Tensor]) -> dict[str, Tensor]:
    side = round(i["tps_points"].shape[1] ** 0.5)
    size = networks.settings["tps"]
    grid = ThinPlateSpline(size["height"], size["width"], side).to(i["tps_points"].device)(
        i["tps_points"].float()
    )
    return {
        "tps_target_points": lattice(side),
        "tps_grid": grid,
        "tps_warped": warp(i["tps_image"].float(), grid),
    }
