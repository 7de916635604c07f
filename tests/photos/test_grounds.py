import numpy as np
import pytest
from PIL import Image

from tests.photos.people import garment
from vton.photos.errors import PhotoError
from vton.photos.garment import on_white
from vton.photos.grounds import Grounds

RNG = np.random.default_rng(1)


def agreement(mask, truth):
    return (mask & truth).sum() / (mask | truth).sum()


def on(ground):
    """The garment on a ground (H, W, 3), and its silhouette."""
    picture, silhouette = garment(1)
    pixels = np.where(silhouette[..., None], np.asarray(picture), ground.clip(0, 255))
    return Image.fromarray(pixels.astype(np.uint8)), silhouette


def even(colour, noise=0.0):
    height, width = 512, 384
    return np.float64(colour) + RNG.normal(0, noise, (height, width, 3))


def uneven():
    slope = np.linspace(-14, 14, 384)[None, :, None] + np.linspace(10, -10, 512)[:, None, None]
    return even((150, 152, 156), 1.5) + slope


GROUNDS = {
    "white": lambda: even((252, 252, 252)),
    "grey, unevenly lit": uneven,
    "beige, noisy": lambda: even((214, 196, 168), 3.0),
    "dark": lambda: even((40, 44, 52), 2.0),
}


@pytest.mark.parametrize("name", GROUNDS)
def test_a_garment_on_a_plain_ground_is_found(name):
    photo, silhouette = on(GROUNDS[name]())
    assert agreement(Grounds().silhouette(photo), silhouette) > 0.93


def test_floors_and_clutter_are_refused():
    boards = even((150, 100, 60)) + 25 * np.sign(np.sin(np.arange(512) / 9))[:, None, None]
    clutter = np.kron(RNG.uniform(0, 255, (16, 12, 3)), np.ones((32, 32, 1)))
    for ground in (boards, clutter):
        with pytest.raises(PhotoError, match="does not lie on a plain ground") as refused:
            Grounds().silhouette(on(ground)[0])
        assert refused.value.picture == "garment"
    with pytest.raises(PhotoError, match="differs from its ground"):
        Grounds().silhouette(Image.fromarray(even((120, 130, 140), 1.0).astype(np.uint8)))


def test_the_garment_is_put_on_white_and_fills_the_picture():
    photo = Image.new("RGB", (900, 600), (200, 30, 30))
    silhouette = np.zeros((600, 900), bool)
    silhouette[250:350, 600:660] = True
    picture, mask = on_white(photo, silhouette, (400, 300))
    rows, columns = mask.nonzero()
    assert (rows.max() - rows.min() + 1) / 400 == pytest.approx(0.9, abs=0.02)
    assert abs((columns.max() + columns.min()) / 2 - 150) < 2
    pixels = np.asarray(picture)
    assert (pixels[0] == 255).all() and pixels[200, 150].tolist() == [200, 30, 30]


def test_a_photo_that_the_garment_fills_keeps_its_frame():
    photo, silhouette = garment(1)
    picture, mask = on_white(photo, silhouette, (512, 384))
    assert agreement(mask, silhouette) > 0.99 and picture.size == (384, 512)
