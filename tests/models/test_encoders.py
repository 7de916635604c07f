"""Encoders of garments and captions: what they see, and which parameters a result depends on."""

import numpy as np
import pytest
import torch
from PIL import Image

from vton.config import ConfigError
from vton.models.encoders import CLIP_MEAN, CLIP_STD, clip_image_encoder, text_encoder
from vton.models.settings import ClipConfig, TextConfig

TOWER = {
    "width": 16,
    "layers": 2,
    "heads": 2,
    "mlp": 32,
    "patch": 8,
    "image_size": 32,
    "projection": 8,
}
TEXT = {"width": 16, "layers": 2, "heads": 2, "mlp": 32, "vocabulary": 384, "length": 24}


@pytest.mark.parametrize(("width", "height", "resized_height"), [(96, 128, 42), (49, 98, 64)])
def test_crop_is_clips_own_preprocessing(width, height, resized_height):
    """Against Pillow's bicubic resize of the shorter side and a centre crop, to one grey level.

    98 * (32 / 49) is less than 64 in floating point, and CLIP's 32 * 98 / 49 is not.
    """
    coarse = np.random.default_rng(0).integers(40, 216, (8, 6, 3), dtype=np.uint8)
    image = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))
    resized = Image.fromarray(image).resize((32, resized_height), Image.Resampling.BICUBIC)
    top = (resized_height - 32) // 2
    expected = np.array(resized)[top : top + 32].transpose(2, 0, 1) / 255
    encoder = clip_image_encoder(ClipConfig(**TOWER, fit="crop"))
    pixels = encoder.pixels(torch.from_numpy(image.transpose(2, 0, 1))[None] / 127.5 - 1)[0]
    found = pixels * torch.tensor(CLIP_STD).view(3, 1, 1) + torch.tensor(CLIP_MEAN).view(3, 1, 1)
    assert np.abs(found.numpy() - expected).max() < 1.5 / 255


def test_squash_keeps_the_whole_picture():
    encoder = clip_image_encoder(ClipConfig(**TOWER))
    picture = torch.full((1, 3, 64, 48), -1.0)
    picture[:, :, :2] = 1  # a bright rim that cropping would lose
    assert encoder.pixels(picture)[0, :, 0].mean() > encoder.pixels(picture)[0, :, 16].mean() + 1


@pytest.mark.parametrize("output", ["pooled", "last", "penultimate"])
def test_image_encoder_names_the_parameters_behind_each_output(output):
    encoder = clip_image_encoder(ClipConfig(**TOWER))
    results = {"pooled": encoder.pooled, "last": encoder, "penultimate": encoder.penultimate}
    result = results[output](torch.rand(2, 3, 64, 48))
    assert result.shape == ((2, 1, 8) if output == "pooled" else (2, 17, 16))
    result.square().sum().backward()
    read = {id(p) for p in encoder.read_by(output)}
    assert {id(p) for p in encoder.parameters() if p.grad is not None} == read


@pytest.mark.parametrize(("projection", "penultimate"), [(0, False), (0, True), (8, True)])
def test_text_encoder_from_scratch_reads_bytes(projection, penultimate):
    encoder = text_encoder(TextConfig(**TEXT, projection=projection, penultimate=penultimate))
    captions = ["model is wearing a shirt", "model is wearing a skirt, and much more than fits", ""]
    tokens, pooled = encoder(captions)
    assert tokens.shape == (3, 24, 16) and (pooled is None) == (not projection)
    assert not torch.equal(tokens[0], tokens[1])
    (tokens.square().sum() + (pooled.sum() if projection else 0)).backward()
    read = {id(p) for p in encoder.read_parameters()}
    assert {id(p) for p in encoder.parameters() if p.grad is not None} == read


def test_a_vocabulary_that_cannot_hold_bytes_is_refused():
    with pytest.raises(ConfigError, match=r"model\.text\.vocabulary=100"):
        text_encoder(TextConfig(**TEXT | {"vocabulary": 100}))
