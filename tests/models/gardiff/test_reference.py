"""GarDiff's formulas against reference vectors (float32, random weights; tests/vectors/gardiff)."""

import json
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import Attention
from safetensors.torch import load_file

from vton.config import ObjectiveConfig
from vton.diffusion.objective import Objective
from vton.models.gardiff.losses import DISTS, appearance_loss, high_frequency_loss, sobel, sobel_magnitude
from vton.models.gardiff.network import GarmentFocusedProcessor
from vton.models.pretrained import load_state

FOLDER = Path(__file__).parents[2] / "vectors" / "gardiff"


@pytest.fixture(scope="module")
def vectors():
    kinds = ("inputs", "outputs", "weights")
    return {kind: load_file(FOLDER / f"{kind}_derived.safetensors") for kind in kinds} | {
        "config": json.loads((FOLDER / "config.json").read_text())
    }


def close(actual, expected):
    """1e-5 of the tensor's largest value: what re-assembling the formulas in float32 costs."""
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1e-2)


def test_forward_process_and_its_inversion(vectors):
    inputs, outputs = vectors["inputs"], vectors["outputs"]
    objective = Objective(ObjectiveConfig())
    signal, noise = objective.signal_and_noise(inputs["d_t"], inputs["d_x0"])
    close(signal.flatten(), outputs["sqrt_alpha_prod"])
    close(noise.flatten(), outputs["sqrt_one_minus_alpha_prod"])
    xt = objective.add_noise(inputs["d_x0"], inputs["d_eps"], inputs["d_t"])
    close(xt, outputs["xt"])
    close(objective.clean(xt, inputs["d_t"], inputs["d_eps_pred"]), outputs["x0_hat"])


@pytest.mark.parametrize(
    ("branches", "name"), [(None, "nomask"), (("clip", "vae"), "mask_both"), (("vae",), "mask_vae")]
)
def test_garment_focused_attention(vectors, branches, name):
    inputs, weights, shape = vectors["inputs"], vectors["weights"], vectors["config"]["gf"]
    layer = Attention(
        shape["hidden"], shape["context"], heads=shape["heads"], dim_head=shape["hidden"] // shape["heads"]
    )
    processor = GarmentFocusedProcessor(layer, tuple(name in (branches or ()) for name in ("clip", "vae")))
    layer.set_processor(processor)
    names = {
        "to_q.weight": "to_q", "to_k.weight": "to_k_clip", "to_v.weight": "to_v_clip",
        "processor.to_k_adapter.weight": "to_k_vae", "processor.to_v_adapter.weight": "to_v_vae",
    }  # fmt: skip
    state = {ours: weights[f"gf.{theirs}.weight"] for ours, theirs in names.items()}
    state |= {f"to_out.0.{part}": weights[f"gf.to_out.0.{part}"] for part in ("weight", "bias")}
    load_state(layer, state, "reference")
    hidden = inputs["d_attn_hidden"]
    masks = {hidden.shape[1]: inputs["d_attn_mask"][..., None]} if branches else None
    tokens = torch.cat([inputs["d_clip_tokens"], inputs["d_vae_tokens"]], dim=1)
    length = inputs["d_vae_tokens"].shape[1]
    close(layer(hidden, tokens, adapter_length=length, query_masks=masks), vectors["outputs"][f"gf_out_{name}"])


def test_outside_the_garment_only_the_output_bias_is_left(vectors):
    hidden = vectors["inputs"]["d_attn_hidden"]
    layer = Attention(32, 20, heads=4, dim_head=8)
    layer.set_processor(GarmentFocusedProcessor(layer, (True, True)))
    masks = {hidden.shape[1]: torch.zeros(*hidden.shape[:2], 1)}
    out = layer(hidden, torch.randn(2, 5, 20), adapter_length=4, query_masks=masks)
    assert torch.equal(out, layer.to_out[0].bias.expand_as(out))


def test_sobel_edges(vectors):
    truth, outputs = vectors["inputs"]["d_gt_img"], vectors["outputs"]
    gx, gy = sobel(truth)
    close(gx, outputs["sobel_gx_gt"])
    close(gy, outputs["sobel_gy_gt"])
    close(sobel_magnitude(truth), outputs["sobel_mag_gt"])


def test_dists_and_appearance_loss(vectors):
    inputs, outputs = vectors["inputs"], vectors["outputs"]
    prediction, truth, mask = inputs["d_pred_img"], inputs["d_gt_img"], inputs["d_warp_mask"]
    dists = DISTS(tuple(vectors["config"]["dists_channels"][1:]))
    state = {k.removeprefix("dists."): v for k, v in vectors["weights"].items() if k.startswith("dists.")}
    load_state(dists, state, "reference")
    close(dists((prediction + 1) / 2, (truth + 1) / 2), outputs["dists"])
    close(dists((prediction + 1) / 2 * mask, (truth + 1) / 2 * mask), outputs["dists_masked"])
    close(high_frequency_loss(prediction, truth, mask), outputs["loss_highfreq"])
    close(appearance_loss(prediction, truth, mask, dists), outputs["loss_appearance"])
