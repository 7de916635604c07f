"""GarDiff's formulas against reference vectors (float32, random weights; tests/vectors/gardiff)."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import Attention
from safetensors.torch import load_file, save_file

from vton.commands.verify import verify
from vton.config import ObjectiveConfig
from vton.diffusion.objective import Objective
from vton.errors import UserError
from vton.models.gardiff.losses import (
    appearance_loss,
    high_frequency_loss,
    sobel,
    sobel_magnitude,
)
from vton.models.gardiff.network import GarmentFocusedProcessor
from vton.models.gardiff.reference import kind, recompute, reference_dists
from vton.models.reference import Kind, Reference
from vton.weights.pretrained import load_state

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
        shape["hidden"],
        shape["context"],
        heads=shape["heads"],
        dim_head=shape["hidden"] // shape["heads"],
    )
    processor = GarmentFocusedProcessor(
        layer, tuple(name in (branches or ()) for name in ("clip", "vae"))
    )
    layer.set_processor(processor)
    names = {
        "to_q.weight": "to_q",
        "to_k.weight": "to_k_clip",
        "to_v.weight": "to_v_clip",
        "processor.to_k_adapter.weight": "to_k_vae",
        "processor.to_v_adapter.weight": "to_v_vae",
    }
    state = {ours: weights[f"gf.{theirs}.weight"] for ours, theirs in names.items()}
    state |= {f"to_out.0.{part}": weights[f"gf.to_out.0.{part}"] for part in ("weight", "bias")}
    load_state(layer, state, "reference")
    hidden = inputs["d_attn_hidden"]
    masks = {hidden.shape[1]: inputs["d_attn_mask"][..., None]} if branches else None
    tokens = torch.cat([inputs["d_clip_tokens"], inputs["d_vae_tokens"]], dim=1)
    length = inputs["d_vae_tokens"].shape[1]
    close(
        layer(hidden, tokens, adapter_length=length, query_masks=masks),
        vectors["outputs"][f"gf_out_{name}"],
    )


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
    channels = tuple(vectors["config"]["dists_channels"][1:])
    dists = reference_dists(channels, vectors["weights"])
    close(dists((prediction + 1) / 2, (truth + 1) / 2), outputs["dists"])
    close(dists((prediction + 1) / 2 * mask, (truth + 1) / 2 * mask), outputs["dists_masked"])
    close(high_frequency_loss(prediction, truth, mask), outputs["loss_highfreq"])
    close(appearance_loss(prediction, truth, mask, dists), outputs["loss_appearance"])


def test_every_reference_tensor_is_met():
    checks = verify(FOLDER)
    names = {name for file in FOLDER.glob("outputs*.safetensors") for name in load_file(file)}
    assert {check.name for check in checks} == names and len(names) == 68
    assert [check.name for check in checks if not check.passed] == []
    # Three times tighter than the verdict's bounds: what another order of float32 sums costs, which
    # differs between processors.
    bounds = {"single call": ("max_absolute", 3e-5), "several steps": ("max_relative", 3e-5)}
    for check in checks:
        if check.kind in bounds:
            error, bound = bounds[check.kind]
            assert getattr(check, error) <= bound, check.name


def test_half_precision_holds_its_own_bounds():
    assert [check.name for check in verify(FOLDER, dtype="bf16") if not check.passed] == []


@pytest.fixture(scope="module")
def one_sample(tmp_path_factory):
    """The second sample alone, three steps, its garment upside down in a picture of other size."""
    folder = tmp_path_factory.mktemp("one")
    shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
    inputs = load_file(FOLDER / "inputs.safetensors")
    outputs = load_file(FOLDER / "outputs.safetensors")
    alone = {name: x[1:] if len(x) == 2 else x for name, x in inputs.items()}
    alone["cloth_u8"] = alone["cloth_u8"].flip(2)[..., :100].contiguous()
    alone["adapter_text_tokens"] = alone["adapter_text_tokens"][:, :5].contiguous()
    for name in ("attn_key_mask", "attn_query_key_mask"):
        alone[name] = alone[name][..., :5].contiguous()
    save_file(alone, folder / "inputs.safetensors")
    kept = {name: x for name, x in outputs.items() if not name.startswith(("legacy12.", "paste."))}
    save_file(kept, folder / "outputs.safetensors")
    config = json.loads((FOLDER / "config.json").read_text()) | {"num_inference_steps": 3}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("inputs", "outputs", "weights"):
        (folder / f"{name}_derived.safetensors").unlink()
    return recompute(Reference(folder, torch.device("cpu"))), outputs


def test_other_batches_sizes_and_counts_need_no_change_of_code(one_sample):
    found, expected = one_sample
    unchanged = ("composite_image", "vae_token_latents", "text_hidden_states")
    for name in (*unchanged, "unet.unet_out", "unet.attn2_out"):
        close(found[name], expected[name][1:])
    tokens, others = found["prompt_embeds"], expected["prompt_embeds"][1:]
    close(tokens[:, 2:], others[:, 2:])
    assert (tokens[:, 1] - others[:, 1]).abs().max() > 1e-6  # another garment
    assert found["timesteps"].tolist() == [667, 334, 1]
    assert found["latents_per_step"].shape == (3, 1, 4, 16, 8)
    assert found["decoupled.unet_out_scale1"].shape == (1, 4, 16, 8)


def test_groups_that_a_folder_lacks_are_left_alone(one_sample):
    assert not any(
        name.startswith(("legacy12.", "paste.", "gf_", "tps_")) for name in one_sample[0]
    )


def test_folders_without_what_they_need_say_so(tmp_path):
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / "weights_adapter.safetensors").unlink()
    with pytest.raises(UserError, match=r"No weights at .*weights_adapter"):
        verify(tmp_path)


def test_kinds_of_outputs():
    assert kind("legacy12.timesteps") is kind("paste.fused_u8") is Kind.EXACT
    assert kind("legacy12.final_image_u8") is Kind.BYTES
    assert kind("legacy12.latents_after_step7") is kind("final_latents") is Kind.STEPS
    assert kind("unet.unet_out") is kind("latents") is Kind.CALL
