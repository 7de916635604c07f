"""VTON-IQA from files in the layout of its release."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.transforms.v2 import InterpolationMode, functional
from transformers import DINOv3ViTImageProcessor, DINOv3ViTModel

from tests.metrics.tiny_vision import dinov3_config, pictures, write_vton_iqa
from vton.errors import UserError
from vton.metrics.vton_iqa import load, padded

CPU = torch.device("cpu")


@pytest.mark.parametrize("older", [True, False])
def test_the_published_files_load_under_both_names_of_blocks(tmp_path, older):
    network = write_vton_iqa(tmp_path, older)
    found = load(tmp_path / "vton_iqa", CPU)
    person, garment, picture = pictures(3)
    assert torch.equal(found(person, garment, picture), network(person, garment, picture))
    assert found.backbone.model.config.num_attention_heads == 1


def test_without_reading_each_other_they_are_dinov3s_own_class_tokens(tmp_path):
    """The release starts from cross-attention that adds nothing."""
    network = write_vton_iqa(tmp_path)
    for name, module in network.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            assert "_blocks." in name
            nn.init.zeros_(module.out_proj.weight), nn.init.zeros_(module.out_proj.bias)
    plain = DINOv3ViTModel(dinov3_config()).eval()
    plain.load_state_dict(network.backbone.model.state_dict())
    processor = DINOv3ViTImageProcessor()

    def token(picture):
        height, width = picture.shape[1:]
        margin = (height - width) // 2
        square = F.pad(picture[None].float(), (margin, margin, 0, 0), mode="replicate")[0]
        square = functional.resize(square.byte(), [512, 512], InterpolationMode.BICUBIC)
        pixels = processor(images=square, return_tensors="pt").pixel_values
        return plain(pixel_values=pixels).pooler_output

    person, garment, picture = pictures(3)
    with torch.no_grad():
        p, c, v = map(token, (person, garment, picture))
        likeness = 0.3 * F.cosine_similarity(p, v) + 0.7 * F.cosine_similarity(c, v)
        expected = torch.tanh(3 * likeness + 0.1)
    assert network(person, garment, picture).item() == pytest.approx(expected.item(), abs=1e-6)


def test_person_and_garment_both_count_and_sizes_may_differ(tmp_path):
    network = write_vton_iqa(tmp_path)
    person, garment, picture = pictures(3)
    score = network(person, garment, picture).item()
    assert -1 < score < 1
    assert network(person, 255 - garment, picture).item() != score
    assert network(255 - person, garment, picture).item() != score
    small = pictures(3, size=(64, 48))[2]
    assert network(person, garment, small).item() == pytest.approx(score, abs=0.05)


def test_squares_repeat_the_border():
    square = padded(torch.arange(3 * 4 * 2, dtype=torch.uint8).reshape(3, 4, 2))
    assert square.shape == (3, 4, 4)
    assert torch.equal(square[:, :, 0], square[:, :, 1])
    assert torch.equal(square[:, :, 3], square[:, :, 2])


def test_other_files_are_refused_by_name(tmp_path):
    write_vton_iqa(tmp_path)
    path = tmp_path / "vton_iqa" / "model.safetensors"
    state = load_file(path)
    save_file({name: x for name, x in state.items() if "mid_p2v" not in name}, path)
    with pytest.raises(UserError, match=r"model\.safetensors.*mid_p2v"):
        load(tmp_path / "vton_iqa", CPU)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="not VTON-IQA's weights"):
        load(tmp_path / "vton_iqa", CPU)
