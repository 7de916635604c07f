"""The README's example runs as it stands, on small networks saved in the layouts that it loads."""

import re
from pathlib import Path

import torch
from safetensors.torch import save_file

import vton.models.imagdressing
from tests.models.imagdressing.small import LATENT, controlnet, dresser, inputs, unet

README = Path(vton.models.imagdressing.__file__).with_name("README.md")


def test_the_example_composes_pose_face_and_garment(tmp_path):
    model, arguments = dresser("pose", "face"), inputs([0, 1], "pose", "face")
    unet(1).save_pretrained(tmp_path / "base" / "unet")
    controlnet(5).save_pretrained(tmp_path / "openpose")
    save_file(model.face.state_dict(), tmp_path / "face.safetensors")
    theirs = {
        "ref_unet": model.garment_unet,
        "proj": model.projector,
        "adapter_modules": model.adapter,
    }
    module = {
        f"{part}.{n}": x
        for part, network in theirs.items()
        for n, x in network.state_dict().items()
    }
    torch.save({"module": module}, tmp_path / "dressing.pt")
    face, start = arguments["face"], torch.randn(2, 4, *LATENT)
    names = {
        "BASE": tmp_path / "base",
        "OPENPOSE": tmp_path / "openpose",
        "FACEID": tmp_path / "face.safetensors",
        "CHECKPOINT": tmp_path / "dressing.pt",
        "STEPS": 2,
        "text": arguments["text"],
        "negative": arguments["negative_text"],
        "garment": arguments["garment_latents"],
        "clip": arguments["clip"],
        "picture": arguments["control"]["pose"],
        "identity": face.embedding,
        "crop": face.clip,
        "nobody": face.null_clip,
        "noise": start,
    }
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    with torch.no_grad():
        exec(code, names)
    assert names["latents"].shape == start.shape and torch.isfinite(names["latents"]).all()
    assert names["conditions"]["garment_scale"].tolist() == torch.tensor([1.2, 0.9]).tolist()
