"""Published files in and out: the garment checkpoint and FaceID-Plus."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.models.imagdressing.small import drawn, dresser, inputs, unet
from vton.commands.exchange import export_run, import_run
from vton.config import load
from vton.cost.meta import on_meta
from vton.errors import UserError
from vton.models.imagdressing.checkpoint import (
    load_dresser,
    load_faceid,
    read_published,
    write_published,
)
from vton.models.imagdressing.faceid import FaceID
from vton.runs.folder import RunFolder
from vton.weights.pretrained import check_state, read_checkpoint

FOLDER = Path(__file__).parents[2] / "vectors" / "imagdressing"
# What the tensors of the small checkpoint cannot tell.
SMALL = (
    "model.unet.heads=[2,2]",
    "model.garment_unet.heads=[2,2]",
    "model.unet.groups=8",
    "model.garment_unet.groups=8",
    "model.projector.heads=3",
    "model.projector.head_width=16",
    "model.clip.heads=2",
    "model.text.heads=2",
)


@pytest.fixture
def module():
    """The entries of `module`, the projector in half precision."""
    state = load_file(FOLDER / "weights_checkpoint.safetensors")
    return {name: x.half() if name.startswith("proj.") else x for name, x in state.items()}


@pytest.mark.parametrize("form", ["module", "bare", "safetensors"])
def test_import_and_export_are_byte_equal(form, module, tmp_path):
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pt")
    if form == "safetensors":
        save_file(module, path)
    else:
        torch.save({"module": module, "ds_version": "0.14"} if form == "module" else module, path)
    run = import_run("imagdressing", path, f"runs={tmp_path}", *SMALL)
    assert run.load_config().model.unet.widths == (16, 32)
    for target in (tmp_path / "again.pt", tmp_path / "again.safetensors"):
        export_run(run, target)
        if target.suffix == ".safetensors":
            with safe_open(target, "pt") as file:
                assert file.metadata() == {"format": "pt"}
        again = (
            load_file(target)
            if target.suffix == ".safetensors"
            else read_checkpoint(target)["module"]
        )
        assert again.keys() == module.keys()
        assert all(
            again[name].dtype == x.dtype and torch.equal(again[name], x)
            for name, x in module.items()
        )


def test_full_size_names_and_shapes():
    """Of the checkpoint and of a FaceID-Plus file, against the networks on the meta device."""
    shapes = json.loads((FOLDER / "full_size.json").read_text())
    checkpoint, face = (
        {name: torch.empty(shape, device="meta") for name, shape in part.items()}
        for part in shapes.values()
    )
    module = on_meta(load("model=imagdressing", "preset=paper"))
    theirs = {"garment_unet": "ref_unet", "projector": "proj", "adapter": "adapter_modules"}
    own = {}
    for name, tensor in module.state_dict().items():
        network, _, rest = name.partition(".")
        own[f"{theirs[network]}.{rest}"] = tensor
    check_state(own, checkpoint, "full_size.json")
    with torch.device("meta"):
        plugin = FaceID.shaped(face, module.part("unet"))
    check_state(plugin.state_dict(), face, "full_size.json")


def test_settings_follow_from_the_full_size_tensors(tmp_path, monkeypatch):
    """They are those of the paper's preset, so that importing needs no overrides."""
    shapes = json.loads((FOLDER / "full_size.json").read_text())["checkpoint"]
    meta = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    monkeypatch.setattr(
        "vton.models.imagdressing.checkpoint.read_checkpoint", lambda path: {"module": meta}
    )
    published = read_published(tmp_path / "IMAGDressing-v1_512.pt")
    plain = load("model=imagdressing", "preset=paper")
    plain.model.prompt = "A beautiful model"
    plain.model.negative_prompt = f"bare, naked, nude, undressed, {plain.model.negative_prompt}"
    assert load("model=imagdressing", "preset=paper", *published.settings) == plain
    assert not published.extra


class Attack:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_files_that_are_not_the_checkpoint(module, tmp_path, capsys):
    def refused(match: str, content=None, name: str = "x.pt"):
        path = tmp_path / name
        if content is not None:
            torch.save(content, path)
        with pytest.raises(UserError, match=match) as error:
            read_published(path)
        assert "\n" not in str(error.value)

    refused(
        r"no ref_unet\.\*, proj\.\*, adapter_modules\.\*",
        {"encoder_hid_proj.latents": torch.zeros(2)},
    )
    refused(
        r"no proj\.\*", {"module": {n: x for n, x in module.items() if not n.startswith("proj.")}}
    )
    refused("expected a mapping", {"module": [1]})
    refused(
        "ref_unet or proj is incomplete",
        {n: x for n, x in module.items() if n != "ref_unet.conv_in.weight"},
    )
    refused("not a safe, complete torch file", {"module": Attack()})
    refused("published as one file", name=".")
    save_file(module, tmp_path / "short.safetensors")
    whole = (tmp_path / "short.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(whole[: len(whole) // 2])
    refused("not a readable safetensors file", name="short.safetensors")
    assert "must not run" not in capsys.readouterr().out


def test_wrong_keys_are_listed(module, tmp_path):
    del module["adapter_modules.4.to_k_ref.weight"]
    module["adapter_modules.5.to_k_ref.weight"] = torch.zeros(16, 16)
    torch.save({"module": module}, tmp_path / "x.pt")
    with pytest.raises(
        UserError, match=r"1 missing \(adapter\.4\.to_k.*1 unexpected \(adapter\.5\.to_k"
    ):
        import_run("imagdressing", tmp_path / "x.pt", f"runs={tmp_path}", *SMALL)


def test_what_has_no_place_in_the_format_is_refused(tmp_path):
    with pytest.raises(UserError, match="no place for 'inpaint'"):
        write_published(
            tmp_path / "x.pt", {"inpaint.net.conv_in.weight": torch.zeros(1)}, load(), {}
        )
    assert not (tmp_path / "x.pt").exists()


@pytest.mark.parametrize("nested", [True, False])
def test_faceid_files(nested, tmp_path):
    state, base = load_file(FOLDER / "weights_faceid.safetensors"), reference_unet()
    path = tmp_path / ("face.bin" if nested else "face.safetensors")
    if nested:
        sections = {
            s: {n.partition(".")[2]: x for n, x in state.items() if n.startswith(s)}
            for s in ("image_proj", "ip_adapter")
        }
        torch.save(sections, path)
    else:
        save_file(state, path)
    face = load_faceid(path, base, shortcut=1.0)
    assert face.shortcut == 1.0 and face.image_proj.tokens == 4
    assert all(torch.equal(x, state[name]) for name, x in face.state_dict().items())
    with pytest.raises(UserError, match="does not fit FaceID"):
        load_faceid(path, unet(0))


def test_plugins_follow_a_base_in_half_precision(tmp_path):
    """A base UNet in bfloat16, all else as files and encoders give it, in float32."""
    model = dresser("face")
    save_file(model.face.state_dict(), tmp_path / "face.safetensors")
    theirs = {
        "ref_unet": model.garment_unet,
        "proj": model.projector,
        "adapter_modules": model.adapter,
    }
    module = {}
    for part, network in theirs.items():
        for name, tensor in network.state_dict().items():
            module[f"{part}.{name}"] = tensor
    torch.save({"module": module}, tmp_path / "dressing.pt")
    latents = {}
    for dtype in (torch.float32, torch.bfloat16):
        base = torch.nn.Module.to(unet(1), dtype)
        face = load_faceid(tmp_path / "face.safetensors", base)
        loaded = load_dresser(tmp_path / "dressing.pt", base, face=face)
        assert {p.dtype for p in loaded.parameters()} == {dtype}
        with torch.no_grad():
            conditions = loaded.condition(**inputs([0, 1], "face"))
            latents[dtype] = drawn(loaded, conditions, [0, 1], 3.0)
    exact, half = latents.values()
    assert (half - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_files_that_are_not_faceid_plus(tmp_path):
    state = load_file(FOLDER / "weights_faceid.safetensors")
    save_file(
        {n: x for n, x in state.items() if "perceiver" not in n}, tmp_path / "faceid.safetensors"
    )
    with pytest.raises(UserError, match="not a FaceID-Plus file"):
        load_faceid(tmp_path / "faceid.safetensors", reference_unet())
    with pytest.raises(UserError, match="not an IP-Adapter file"):
        load_faceid(FOLDER / "weights_controlnet.safetensors", reference_unet())


def reference_unet():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**json.loads((FOLDER / "config.json").read_text())["unet"])


def test_a_run_folder_of_the_tiny_preset_is_not_exported(tmp_path):
    """Its base UNet is trained along, which the published format has no place for."""
    config = load("model=imagdressing", "preset=tiny", f"runs={tmp_path}")
    state = on_meta(config).state_dict()
    with pytest.raises(UserError, match=r"which this run trained \(model\.unet\.trained\)"):
        write_published(tmp_path / "x.pt", {n: torch.zeros(1) for n in state}, config, {})
    assert not RunFolder.of(config).weights.exists()
