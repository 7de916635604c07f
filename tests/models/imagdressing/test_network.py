"""Hybrid attention, guidance, batching and the plug-ins, on small random networks."""

import pytest
import torch

from tests.models.imagdressing.small import (
    CONTEXT,
    LATENT,
    TOKENS,
    controlnet,
    drawn,
    dresser,
    inputs,
    stock,
    unet,
)
from vton.diffusion.denoiser import Step
from vton.diffusion.sampling import double
from vton.models.codecs import latent_mask
from vton.models.imagdressing.control import Control, inpaint_picture
from vton.models.imagdressing.network import Dresser

EVERYTHING = ("pose", "inpaint", "face")
Z, T = (
    torch.randn(3, 4, *LATENT, generator=torch.Generator().manual_seed(0)),
    torch.tensor([981, 500, 1]),
)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def predict(model, conditions, z=Z, t=T, step=None):
    return model.denoise(z, t, conditions, model.garment_features(conditions, t, step))


def close(found, expected, tolerance=2e-5):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_lambda_0_is_the_base_unet(scale):
    model = dresser()
    found = predict(model, model.condition(**inputs([0, 1, 2]), garment_scale=scale))
    base = stock(model.unet)(Z, T, inputs([0, 1, 2])["text"]).sample
    difference = (found - base).abs().max()
    assert difference == 0 if scale == 0 else difference > 1e-2


@torch.enable_grad()
def test_lambda_0_is_the_base_unet_with_gradients():
    """Where every row is computed, so that all parameters get a gradient, which is 0 here."""
    model = dresser()
    found = predict(model, model.condition(**inputs([0, 1, 2]), garment_scale=0.0))
    assert torch.equal(found, stock(model.unet)(Z, T, inputs([0, 1, 2])["text"]).sample)
    found.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.adapter.parameters())


def test_lambda_is_per_row_and_undressed_rows_are_not_computed():
    model = dresser()
    conditions = model.condition(**inputs([0, 1, 2]), garment_scale=torch.tensor([0.6, 0.0, 1.2]))
    features = model.garment_features(conditions, T)
    assert features["dressed"].tolist() == [0, 2]
    assert all(len(k) == 2 for k in model.garments(conditions, features).k.values())
    bare = model.unconditional(conditions)
    assert model.garments(bare, model.garment_features(bare, T)) is None
    found = predict(model, conditions)
    for row, scale in enumerate((0.6, 0.0, 1.2)):
        alone = model.condition(**inputs([row]), garment_scale=scale)
        close(found[row : row + 1], predict(model, alone, Z[row : row + 1], T[row : row + 1]))


def heads(x: torch.Tensor) -> torch.Tensor:
    """(B, L, C) -> (B, 2, L, C / 2)."""
    return x.unflatten(-1, (2, -1)).transpose(1, 2)


def test_each_layer_is_the_formula():
    """Two softmaxes of one query, summed per head before the layer's own output projection."""
    model = dresser()
    arguments = inputs([0, 1, 2])
    conditions = model.condition(**arguments, garment_scale=0.4)
    garments = model.garments(conditions, model.garment_features(conditions, T))
    taps = model.garment_taps(arguments["garment_latents"], arguments["clip"])
    for number, block in model.adapter.blocks.items():
        layer, weights = model.unet.get_submodule(f"{block}.attn1"), model.adapter[str(number)]
        x, f = torch.randn(3, 11, layer.query_dim), taps[block]
        q, k, v = heads(layer.to_q(x)), heads(layer.to_k(x)), heads(layer.to_v(x))
        kg, vg = heads(weights.to_k_ref(f)), heads(weights.to_v_ref(f))
        root = q.shape[-1] ** 0.5
        z = (q @ k.mT / root).softmax(-1) @ v + 0.4 * (q @ kg.mT / root).softmax(-1) @ vg
        close(layer(x, garments=garments), layer.to_out[0](z.transpose(1, 2).flatten(2)))


def test_joint_attention_is_one_softmax_by_the_layers_own_weights():
    """The ablation's base: no projector, no W'k and W'v; garment tokens count lambda times."""
    model = Dresser(unet(1), unet(2), None, None)
    tokens = torch.randn(3, 7, CONTEXT)  # text in place of projected CLIP tokens
    arguments = inputs([0, 1, 2]) | {"clip": tokens}
    conditions = model.condition(**arguments, garment_scale=torch.tensor([0.4, 0.0, 1.0]))
    garments = model.garments(conditions, model.garment_features(conditions, T))
    taps = model.garment_taps(arguments["garment_latents"], tokens)
    for block in model.adapter.blocks.values():
        layer = model.unet.get_submodule(f"{block}.attn1")
        x, f = torch.randn(3, 11, layer.query_dim), taps[block]
        both = torch.cat([x, f], 1)
        q, k, v = heads(layer.to_q(x)), heads(layer.to_k(both)), heads(layer.to_v(both))
        weights = (q @ k.mT / q.shape[-1] ** 0.5).exp()
        weights[..., 11:] *= torch.tensor([0.4, 0.0, 1.0]).view(3, 1, 1, 1)
        z = weights / weights.sum(-1, keepdim=True) @ v
        close(layer(x, garments=garments), layer.to_out[0](z.transpose(1, 2).flatten(2)))
    base = stock(model.unet)(Z, T, conditions["negative_text"]).sample
    close(predict(model, model.unconditional(conditions)), base)


@pytest.mark.parametrize("guidance", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("plugins", [(), ("pose",), ("inpaint",), ("face",), EVERYTHING])
def test_a_batch_of_three_is_three_batches_of_one(plugins, guidance):
    model = dresser(*plugins)
    together = drawn(model, model.condition(**inputs([0, 1, 2], *plugins)), [0, 1, 2], guidance)
    for row in range(3):
        alone = drawn(model, model.condition(**inputs([row], *plugins)), [row], guidance)
        close(together[row : row + 1], alone, 1e-4)


@pytest.mark.parametrize("plugin", EVERYTHING)
def test_each_plugin_acts_on_both_guidance_branches(plugin):
    model, plain = dresser(plugin), dresser()
    with_it = model.condition(**inputs([0, 1, 2], plugin))
    without = plain.condition(**inputs([0, 1, 2]))
    for branch in (lambda m, c: c, lambda m, c: m.unconditional(c)):
        difference = predict(model, branch(model, with_it)) - predict(plain, branch(plain, without))
        assert difference.abs().amax((1, 2, 3)).min() > 1e-3


def test_both_guidance_branches_in_one_batch_are_two_passes():
    model = dresser(*EVERYTHING)
    conditions = model.condition(**inputs([0, 1, 2], *EVERYTHING))
    null = model.unconditional(conditions)
    both = predict(model, double(null, conditions), torch.cat([Z, Z]), torch.cat([T, T]))
    close(both, torch.cat([predict(model, null), predict(model, conditions)]))


def test_garments_are_shared_by_the_rows_that_wear_them():
    model = dresser()
    arguments = inputs([0, 1, 2])
    arguments["garment_latents"], arguments["clip"] = (
        arguments["garment_latents"][:2],
        arguments["clip"][:2],
    )
    shared = predict(model, model.condition(**arguments, worn=torch.tensor([1, 0, 1])))
    rows = inputs([0, 1, 2])
    for name in ("garment_latents", "clip"):
        rows[name] = rows[name][[1, 0, 1]]
    close(shared, predict(model, model.condition(**rows)))


def test_network_calls():
    """3 persons, 2 garments, 5 steps with guidance: one garment pass of 2 rows, 5 dressing passes
    of 6 rows.
    """
    model, plugins = dresser(*EVERYTHING), EVERYTHING
    calls = {
        name: [] for name in ("unet", "garment_unet", "projector", "pose", "embedding", "identity")
    }
    parts = {
        "unet": model.unet.conv_in,
        "garment_unet": model.garment_unet.conv_in,
        "projector": model.projector,
        "pose": model.controls["pose"].net,
        "embedding": model.controls["pose"].embedding,
        "identity": model.face.image_proj,
    }
    for name, part in parts.items():
        part.register_forward_hook(
            lambda module, arguments, output, name=name: calls[name].append(len(arguments[0]))
        )
    arguments = inputs([0, 1, 2], *plugins)
    arguments["garment_latents"], arguments["clip"] = (
        arguments["garment_latents"][:2],
        arguments["clip"][:2],
    )
    conditions = model.condition(**arguments, worn=torch.tensor([1, 0, 1]))
    for guidance in (3.0, 1.0):
        drawn(model, conditions, [0, 1, 2], guidance, steps=5)
    assert calls["garment_unet"] == calls["projector"] == [2]
    assert calls["unet"] == [6] * 5 + [3] * 5
    assert calls["pose"] == [6] * 3 + [3] * 3  # it ends at 0.6 of the schedule
    assert calls["embedding"] == [3] and calls["identity"] == [3, 1]


def test_a_controlnet_acts_inside_its_interval_only():
    control = Control(controlnet(5), start=0.25, end=0.75)
    assert [control.acts(Step(i, 4)) for i in range(4)] == [False, True, True, False]
    assert control.acts(None)
    model = dresser("pose")
    model.controls["pose"] = control
    conditions = model.condition(**inputs([0, 1, 2], "pose"))
    assert torch.equal(
        predict(model, conditions, step=Step(0, 4)),
        predict(dresser(), dresser().condition(**inputs([0, 1, 2]))),
    )


def test_residuals_of_several_controlnets_add_up():
    model = dresser("pose", "inpaint")
    conditions = model.condition(**inputs([0, 1, 2], "pose", "inpaint"))
    features = model.garment_features(conditions, T)
    total = model.control_residuals(Z, T, conditions, features)
    parts = [
        model.controls[name].net(
            Z, T, conditions["text"], conditions[f"control.{name}"], conditioning_scale=scale
        )
        for name, scale in (("pose", 0.7), ("inpaint", 1.0))
    ]
    expected = [
        sum(r)
        for r in zip(
            *([*p.down_block_res_samples, p.mid_block_res_sample] for p in parts), strict=True
        )
    ]
    for found, wanted in zip(total, expected, strict=True):
        close(found, wanted)


def test_a_stock_controlnet_stays_as_it_is():
    net, picture, text = controlnet(5), torch.rand(3, 3, 32, 24), torch.randn(3, 7, CONTEXT)
    control = Control(net)
    expected = net(Z, T, text, picture, conditioning_scale=0.5)
    found = control(Z, T, text, control.embed(picture), 0.5)
    close(found[-1], expected.mid_block_res_sample)
    assert control.net.conv_in.weight is net.conv_in.weight and control.factor == 4


def test_inpainting_pictures_and_masks():
    image, mask = torch.rand(1, 3, 16, 16), torch.zeros(1, 1, 16, 16)
    mask[..., 3:9, 3:9] = 1
    picture = inpaint_picture(image, mask)
    assert torch.equal(picture[..., 3:9, 3:9], -torch.ones(1, 3, 6, 6)) and torch.equal(
        picture[..., 9:, :], image[..., 9:, :]
    )
    assert latent_mask(mask, (4, 4))[0, 0].tolist() == [
        [0, 0, 0, 0],
        [0, 1, 1, 0],
        [0, 1, 1, 0],
        [0, 0, 0, 0],
    ]


def test_what_is_known_is_returned_outside_the_mask():
    model = dresser("inpaint")
    conditions = model.condition(**inputs([0, 1, 2], "inpaint"))
    latents, known = drawn(model, conditions, [0, 1, 2], 3.0), model.known(conditions)
    outside = (known.mask == 0).expand_as(latents)
    assert torch.equal(latents[outside], known.latents[outside])
    assert (latents - known.latents)[~outside].abs().min() > 0


def test_rows_with_all_face_scales_0_have_no_face():
    model = dresser("face")
    conditions = model.condition(**inputs([0, 1, 2], "face"))
    for name in ("identity_scale", "self_lora", "cross_lora"):
        conditions[name] = torch.tensor([0.9, 0.0, 0.9])
    with_faces = predict(model, conditions)
    plain = predict(dresser(), dresser().condition(**inputs([0, 1, 2])))
    close(with_faces[1], plain[1])
    assert (with_faces - plain)[[0, 2]].abs().amax((1, 2, 3)).min() > 1e-3


def test_without_a_face_the_text_stays_whole_unless_parity_is_asked_for():
    arguments = inputs([0, 1, 2])
    plain = predict(dresser(), dresser().condition(**arguments))
    assert torch.equal(predict(dresser("face"), dresser("face").condition(**arguments)), plain)
    cut = dresser("face", cut_text=True)
    found = predict(cut, cut.condition(**arguments))
    arguments["text"] = arguments["text"][:, :-TOKENS]
    arguments["negative_text"] = arguments["negative_text"][:, :-TOKENS]
    assert torch.equal(found, predict(dresser(), dresser().condition(**arguments)))


def test_the_shortcut_adds_the_queries():
    plain, short = dresser("face"), dresser("face", shortcut=0.7)
    face = inputs([0], "face")["face"]
    queries = plain.face.image_proj.norm(
        plain.face.image_proj.proj(face.embedding).view(1, TOKENS, CONTEXT)
    )
    expected = queries + 0.7 * plain.face_conditions(face)["identity"]
    close(short.face_conditions(face)["identity"], expected)


def test_plugins_that_are_not_there():
    with pytest.raises(ValueError, match=r"conditions for pose.*no ControlNet"):
        dresser().condition(**inputs([0], "pose"))
    with pytest.raises(ValueError, match="conditions for a face"):
        dresser("pose").condition(**inputs([0], "face"))
    three, two = inputs([0, 1, 2]), inputs([0, 1])
    with pytest.raises(ValueError, match="3 rows and 2 garments"):
        dresser().condition(**three | {name: two[name] for name in ("garment_latents", "clip")})


@torch.enable_grad()
def test_gradient_checkpointing_changes_nothing():
    def gradients(checkpointing: bool):
        model = dresser(*EVERYTHING)
        for network in (model.unet, model.garment_unet):
            if checkpointing:
                network.enable_gradient_checkpointing()
        predict(model, model.condition(**inputs([0, 1, 2], *EVERYTHING))).square().mean().backward()
        parts = (model.garment_unet, model.adapter, model.projector, model.unet)
        return [p.grad for part in parts for p in part.parameters()]

    plain, recomputed = gradients(False), gradients(True)
    assert sum(g is None for g in plain) == 24  # behind the garment UNet's last tap
    for one, other in zip(plain, recomputed, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            close(other, one, 1e-6)
