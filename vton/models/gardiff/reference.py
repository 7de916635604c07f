"""GarDiff's part of `vton verify`: tensors recomputed by the code that trains and samples.

A folder may hold any of these groups:

    released script    from pictures to a picture, by the script of December 2024
    unet.              one UNet call of it from inside
    decoupled.         the adapter classes of the repository
    legacy12.          the script of July 2024, with its blended sampling
    paste.             pasting the generated picture into the original
    formulas           the paper's equations, and the spline of a learned warp
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
from vton.data.ranges import from_bytes, to_unit
from vton.diffusion.objective import Objective
from vton.diffusion.sampling import double
from vton.models.codecs import KLCodec
from vton.models.encoders import ClipImageEncoder
from vton.models.gardiff.checkpoint import adapter_sections, fill_adapter
from vton.models.gardiff.losses import (
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
from vton.models.perceptual import DISTS
from vton.models.reference import (
    Kind,
    Reference,
    read_objective,
    read_resampler,
    record_calls,
    run_sampler,
)
from vton.models.warp.tps import ThinPlateSpline, lattice, warp
from vton.weights.pretrained import below, load_state

AFTER_STEP = "legacy12.latents_after_step"
OF_RUNS = ("latents_per_step", "final_latents", "final_image", "noise_pred_last", AFTER_STEP)
OPAQUE = 255  # the July script counts no other value of its warp mask


def kind(name: str) -> Kind:
    if name.endswith("timesteps") or name.startswith("paste."):
        return Kind.EXACT
    if name == "legacy12.final_image_u8":
        return Kind.BYTES
    return Kind.STEPS if name.startswith(OF_RUNS) else Kind.CALL


@torch.no_grad()
def recompute(reference: Reference) -> dict[str, Tensor]:
    """Every tensor of the outputs under its name there."""
    networks = Networks(reference)
    groups = {
        released_script: ("prompt_embeds", "latents_per_step"),
        unet_call: ("unet.",),
        decoupled_adapter: ("decoupled.",),
        july_script: ("legacy12.",),
        pasting: ("paste.",),
        formulas: ("x0_hat", "gf_out", "dists", "sobel", "tps"),
    }
    tensors: dict[str, Tensor] = {}
    for group, beginnings in groups.items():
        if any(name.startswith(beginnings) for name in reference.expected):
            tensors |= group(networks)
    return tensors


class Networks:
    """The folder's networks and noise schedule; the VAE in float32 whatever the others run in."""

    def __init__(self, reference: Reference):
        self.reference = reference
        self.inputs = reference.inputs
        self.settings = reference.config

    def unet(self, settings: str = "unet", weights: str = "unet") -> UNet2DConditionModel:
        unet = UNet2DConditionModel(**self.settings[settings])
        return self.reference.load(unet, weights)

    @cached_property
    def released(self) -> ReleasedUNet:
        return ReleasedUNet(self.unet())

    @cached_property
    def codec(self) -> KLCodec:
        vae = AutoencoderKL(**self.settings["vae"])
        return KLCodec(self.reference.load(vae, "vae", torch.float32))

    @cached_property
    def clip(self) -> ClipImageEncoder:
        tower = CLIPVisionModelWithProjection(CLIPVisionConfig(**self.settings["vision_encoder"]))
        self.reference.load(tower, "vision_encoder")
        return ClipImageEncoder(tower).to(self.reference.device)

    @cached_property
    def text(self) -> Tensor:
        """(B, L, D): the text encoder's tokens of the caption's ids."""
        encoder = CLIPTextModel(CLIPTextConfig(**self.settings["text_encoder"]))
        # Versions of transformers differ in whether these names begin with text_model.
        prefixed = any(name.startswith("text_model.") for name in encoder.state_dict())
        weights = {}
        for name, tensor in self.reference.weights("text_encoder").items():
            weights[name if prefixed else name.removeprefix("text_model.")] = tensor
        self.reference.ready(encoder, weights)
        return encoder(self.inputs["caption_input_ids"]).last_hidden_state

    @cached_property
    def objective(self) -> Objective:
        return read_objective(self.settings["scheduler"])

    def picture(self, name: str, rows: slice = slice(None)) -> Tensor:
        """Bytes as pictures in [-1, 1], float32."""
        return from_bytes(self.inputs[name][rows].float())

    def latents(self, image: Tensor, noise: str) -> Tensor:
        """A scaled draw from the posterior, its noise from the inputs."""
        posterior = self.codec.posterior(image)
        drawn = posterior.mean + posterior.std * self.inputs[noise].float()
        return (drawn * self.codec.scaling).to(self.reference.dtype)

    def decoded(self, z: Tensor) -> Tensor:
        """Pictures in [0, 1]."""
        return to_unit(self.codec.decode(z)).clamp(0, 1)


# ---- the script of December 2024 ----


def released_script(networks: Networks) -> dict[str, Tensor]:
    """mode=release: tokens, composite, DDIM steps without guidance, decoded picture."""
    i, network = networks.inputs, networks.released
    warped, garment = networks.picture("warped_cloth_u8"), networks.picture("cloth_u8")

    # What the UNet reads besides z_t.
    both = composite(networks.picture("image_u8"), warped, i["inpaint_mask"].float())
    pixels = clip_pixels(networks.clip, garment, "release")
    clip = networks.clip.tower(pixels.to(network.unet.dtype)).image_embeds
    single_pixels = clip_pixels(networks.clip, garment, "single")
    single_clip = networks.clip.tower(single_pixels.to(network.unet.dtype)).image_embeds
    posterior = networks.codec.posterior(warped)
    token_latents = networks.latents(warped, "noise_vae_token")
    conditions = network.condition(
        begin=networks.text[:, :1],
        clip=clip[:, None],
        garment=token_latents,
        z_comp=networks.latents(both, "noise_masked_image"),
    )

    scheduler = networks.settings["scheduler"]
    sampler = SamplerConfig(
        solver="ddim",
        steps=networks.settings["num_inference_steps"],
        spacing=scheduler.get("timestep_spacing", "leading"),
        clip_sample=scheduler.get("clip_sample_range", 1.0) if scheduler["clip_sample"] else 0.0,
    )
    networks.reference.check_scheduler(sampler, networks.objective)
    start = i["noise_init"]
    run = run_sampler(network, conditions, [start], sampler, networks.objective)
    return {
        "timesteps": run.timesteps,
        "clip_pixel_values": pixels,
        "clip_image_embeds": clip,
        "clip_image_embeds_single_rescale": single_clip,
        "text_hidden_states": networks.text,
        "warped_latent_mean": posterior.mean,
        "warped_latent_logvar": posterior.logvar,
        "vae_token_latents": token_latents,
        "composite_image": both,
        "masked_image_latents": conditions["z_comp"],
        "garment_tokens": conditions["tokens"][:, 1:],
        "prompt_embeds": conditions["tokens"],
        "unet_input_step0": network.stacked(start, conditions),
        "noise_pred_step0": run.predictions[0],
        "noise_pred_last": run.predictions[-1],
        "latents_per_step": torch.stack(run.latents),
        "final_latents": run.latents[-1],
        "final_image": networks.decoded(run.latents[-1]),
    }


def unet_call(networks: Networks) -> dict[str, Tensor]:
    """One call of the released UNet: some of its parts, and one cross-attention from inside."""
    i, unet, probe = networks.inputs, networks.released.unet, networks.settings["probe_attn2"]
    paths = {
        "conv_in": "conv_in",
        "time_embedding": "time_embedding",
        "down_block0_out": "down_blocks.0",
        "mid_block_out": "mid_block",
        "attn2_key": f"{probe}.to_k",
        "attn2_value": f"{probe}.to_v",
        "attn2_out": probe,
    }
    layers = {name: unet.get_submodule(path) for name, path in paths.items()}
    with record_calls(layers) as calls:
        out = networks.released(i["unet_sample"], i["unet_timestep"], i["unet_tokens"])
    tensors = {"unet.unet_out": out, "unet.attn2_hidden_in": calls["attn2_out"].input}
    for name, call in calls.items():
        # Down blocks also return what the up blocks take over.
        output = call.output[0] if isinstance(call.output, tuple) else call.output
        tensors[f"unet.{name}"] = output
    return tensors


# ---- the adapter classes ----


def decoupled_adapter(networks: Networks) -> dict[str, Tensor]:
    """mode=decoupled: projection head, one layer alone with masks, whole UNets at some scales."""
    i, weights = networks.inputs, networks.reference.weights("adapter")
    network = decoupled_network(networks, weights)
    text, t = i["adapter_text_tokens"], i["unet_timestep"]
    channels = networks.settings["unet"]["out_channels"]
    z_t, z_comp = i["unet_sample"][:, :channels], i["unet_sample"][:, channels:]
    conditions = network.condition(
        text=text, negative_text=text[:1], clip=i["adapter_image_embeds"], z_comp=z_comp
    )
    tensors = {
        "resampler_tokens": resampler_tokens(networks, weights),
        "image_proj_tokens": conditions["garment"],
        "image_proj_tokens_uncond": network.unconditional(conditions)["garment"],
    }

    layer = network.unet.get_submodule(networks.settings["probe_attn2"])
    with record_calls({"attn2": layer}) as calls:
        network.denoise(z_t, t, conditions, {})
    hidden, tokens = calls["attn2"].input, torch.cat([text, conditions["garment"]], dim=1)
    length = {"adapter_length": network.tokens}
    key_mask, query_key_mask = i["attn_key_mask"], i["attn_query_key_mask"]
    tensors["attn2_hidden_in"] = hidden
    tensors["attn2_out_textonly"] = layer(hidden, text)
    tensors["attn2_out_keymask"] = layer(hidden, tokens, attention_mask=key_mask, **length)
    tensors["attn2_out_querykeymask"] = layer(
        hidden, tokens, attention_mask=query_key_mask, **length
    )
    tensors = {f"decoupled.{name}": tensor for name, tensor in tensors.items()}

    for name in networks.reference.expected:  # e.g. decoupled.unet_out_scale0p5
        what, _, scale = name.removesuffix("_same_input").rpartition("_scale")
        if what in ("decoupled.unet_out", "decoupled.attn2_out"):
            network.set_scale(float(scale.replace("p", ".")))
            if what == "decoupled.unet_out":
                tensors[name] = network.denoise(z_t, t, conditions, {})
            else:
                tensors[name] = layer(hidden, tokens, **length)
    return tensors


def decoupled_network(networks: Networks, weights: dict[str, Tensor]) -> DecoupledUNet:
    """The UNet with the adapter's weights."""
    embedding = networks.inputs["adapter_image_embeds"]
    context = len(weights["image_proj.norm.weight"])
    tokens = len(weights["image_proj.proj.weight"]) // context
    network = DecoupledUNet(networks.unet(), embedding.shape[-1], tokens)
    head, layers = adapter_sections(weights)
    fill_adapter(network, head, layers, networks.reference.folder)
    return nn.Module.to(network, embedding.device, embedding.dtype).eval()


def resampler_tokens(networks: Networks, weights: dict[str, Tensor]) -> Tensor:
    resampler = read_resampler(networks.settings["resampler"])
    networks.reference.ready(resampler, below(weights, "resampler."))
    return resampler(networks.inputs["resampler_features"])


# ---- the script of July 2024 ----


def july_script(networks: Networks) -> dict[str, Tensor]:
    """mode=legacy12 on the first sample: the whole run, and both branches at its start."""
    i, codec, expected = networks.inputs, networks.codec, networks.reference.expected
    network = LegacyUNet(networks.unet("unet12", "unet_legacy12"))
    dtype = network.unet.dtype
    warped = networks.picture("warped_cloth_u8", slice(1))
    agnostic = networks.picture("masked_person_u8")
    conditions = network.condition(
        begin=networks.text[:1, :1],
        clip=i["legacy_clip_embeds"][:, None],
        garment=networks.latents(warped, "noise_legacy_token"),
        x_a=(codec.encode(agnostic) / codec.scaling).to(dtype),
        x_w=(codec.encode(warped) / codec.scaling).to(dtype),
        mask=(i["legacy_warp_mask_u8"] == OPAQUE).to(dtype)[None, None],
        blended=networks.latents(warped, "noise_legacy_cloth"),
    )

    guidance = networks.settings["legacy_image_guidance_scale"]
    sampler = SamplerConfig(
        solver="unipc",
        steps=len(expected["legacy12.timesteps"]),
        guidance=guidance if guidance >= 1 else 1.0,  # below 1 the script has none
        spacing="linspace",
        final_sigma="sigma_min",
    )
    start = i["noise_legacy_init"]
    run = run_sampler(network, conditions, [start], sampler, networks.objective)

    # The script's order of the two branches; the sampler's is the other.
    both = double(conditions, network.unconditional(conditions))
    z = torch.cat([start, start])
    first = network.denoise(z, run.timesteps[:1].expand(len(z)), both, {})
    cond, uncond = first.chunk(2)

    picture = (networks.decoded(run.latents[-1]) * 255).round().to(torch.uint8)
    tensors = {
        "legacy12.timesteps": run.timesteps,
        "legacy12.prompt_embeds": conditions["tokens"],
        "legacy12.unet12_input_step0": network.stacked(z, both),
        "legacy12.unet12_out_step0": first,
        "legacy12.guided_noise_step0": uncond + guidance * (cond - uncond),
        "legacy12.final_image_u8": picture.permute(0, 2, 3, 1),
    }
    for name in expected:
        if name.startswith(AFTER_STEP):
            step = int(name.removeprefix(AFTER_STEP))
            tensors[name] = run.latents[step]
    return tensors


def pasting(networks: Networks) -> dict[str, Tensor]:
    i = networks.inputs
    mask = (i["paste_mask_u8"] > 127).float()[None, None]
    generated = i["paste_pred_u8"].permute(2, 0, 1)[None].float()
    original = i["paste_gt_u8"].permute(2, 0, 1)[None].float()
    return {
        "paste.fuse_mask_u8": feathered(mask)[0, 0],
        "paste.fused_u8": paste_back(generated, original, mask)[0].permute(1, 2, 0),
    }


# ---- the paper's formulas ----


def formulas(networks: Networks) -> dict[str, Tensor]:
    """The paper's equations, and the spline of a learned warp."""
    i, weights = below(networks.inputs, "d_"), networks.reference.weights("derived")
    objective, t = networks.objective, i["t"]
    x_t = objective.add_noise(i["x0"], i["eps"], t)
    signal, noise = objective.signal_and_noise(t, i["x0"])
    prediction, truth, mask = i["pred_img"], i["gt_img"], i["warp_mask"]
    gx, gy = sobel(truth)
    dists = reference_dists(tuple(networks.settings["dists_channels"][1:]), weights)
    dists = dists.to(networks.reference.device, networks.reference.dtype)
    x, y = to_unit(prediction), to_unit(truth)
    return {
        "xt": x_t,
        "sqrt_alpha_prod": signal.flatten(),
        "sqrt_one_minus_alpha_prod": noise.flatten(),
        "x0_hat": objective.clean(x_t, t, i["eps_pred"]),
        "sobel_gx_gt": gx,
        "sobel_gy_gt": gy,
        "sobel_mag_gt": sobel_magnitude(truth),
        "dists": dists(x, y),
        "dists_masked": dists(x * mask, y * mask),
        "loss_highfreq": high_frequency_loss(prediction, truth, mask),
        "loss_appearance": appearance_loss(prediction, truth, mask, dists),
        **garment_focused(networks, i, weights),
        **spline(networks, i),
    }


def reference_dists(channels: tuple[int, ...], weights: dict[str, Tensor]) -> DISTS:
    """DISTS with the folder's weights: dists.stage<s>.<l>.* for layer l of VGG16, alpha, beta."""
    dists = DISTS(None, seed=0, channels=channels)
    state = {}
    for name, tensor in below(weights, "dists.stage").items():
        _, layer = name.split(".", 1)
        if not layer.endswith(".filter"):  # of the pooling, which has no weights here
            state[f"features.{layer}"] = tensor
    load_state(dists.backbone, state, "dists")
    dists.calibrate(weights["dists.alpha"], weights["dists.beta"])
    return dists


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
    state = {f"{ours}.weight": weights[f"gf.{name}.weight"] for ours, name in theirs.items()}
    state["to_out.0.bias"] = weights["gf.to_out.0.bias"]
    hidden, heads = i["attn_hidden"], networks.settings["gf"]["heads"]
    inner, context = state["to_k.weight"].shape
    tokens = torch.cat([i["clip_tokens"], i["vae_tokens"]], dim=1)
    length = i["vae_tokens"].shape[1]
    query_masks = {hidden.shape[1]: i["attn_mask"][..., None]}

    masked = {"nomask": (False, False), "mask_both": (True, True), "mask_vae": (False, True)}
    tensors = {}
    for name, branches in masked.items():
        layer = Attention(hidden.shape[-1], context, heads=heads, dim_head=inner // heads)
        layer.set_processor(GarmentFocusedProcessor(layer, branches))
        networks.reference.ready(layer, state)
        tensors[f"gf_out_{name}"] = layer(
            hidden, tokens, adapter_length=length, query_masks=query_masks
        )
    return tensors


def spline(networks: Networks, i: dict[str, Tensor]) -> dict[str, Tensor]:
    points, size = i["tps_points"], networks.settings["tps"]
    side = round(points.shape[1] ** 0.5)
    tps = ThinPlateSpline(size["height"], size["width"], side).to(points.device)
    grid = tps(points.float())
    return {
        "tps_target_points": lattice(side),
        "tps_grid": grid,
        "tps_warped": warp(i["tps_image"].float(), grid),
    }
