"""True places of worn garments: they carry the product picture's pixels to the person."""

import shutil

import numpy as np
import pytest
from PIL import Image

from vton.data.synthetic import STAMP, write
from vton.data.synthetic.correspondence import Correspondence

SIZE = (128, 96)


@pytest.fixture(scope="module", params=["viton_hd", "dresscode"])
def rendered(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    write(root, layout=request.param, size=SIZE, train=1, test=2, seed=0, workers=1)
    return root, Correspondence.of(root)


def opened(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(float)


def files(root, known, entry, worn):
    """Product picture, and the garment as it is worn, evenly lit on white."""
    paired = "" if worn is entry else "unpaired-"
    if known.catalogue.layout == "viton_hd":
        product = root / f"test/cloth/{worn.id}.jpg"
        return opened(product), opened(root / f"test/{paired}cloth-warp/{entry.id}.jpg")
    product = root / entry.category / "images" / f"{worn.id}_1.jpg"
    return opened(product), None


def pairs(known):
    for entry in known.catalogue.of("test"):
        yield entry, entry
        yield entry, known.catalogue.other(entry)


def test_they_lie_in_the_picture_and_cover_the_garment(rendered):
    _, known = rendered
    for entry, worn in pairs(known):
        suffixes = ("_0", "_1") if known.catalogue.layout == "dresscode" else ("", "")
        places = known.places(entry.id + suffixes[0], worn.id + suffixes[1])
        assert places.shape == (*SIZE, 2)
        shown = np.isfinite(places[..., 0])
        assert 0.02 < shown.mean() < 0.6
        assert places[shown].min() > 0 and places[shown].max() < 1


def test_the_product_picture_at_these_places_is_the_worn_garment(rendered):
    root, known = rendered
    if known.catalogue.layout == "dresscode":
        pytest.skip("its folder has no evenly lit garment to compare with")
    for entry, worn in pairs(known):
        product, truth = files(root, known, entry, worn)
        places = known.places(entry.id, worn.id)
        shown = np.isfinite(places[..., 0])
        column = (places[shown][:, 0] * SIZE[1]).astype(int)
        row = (places[shown][:, 1] * SIZE[0]).astype(int)
        error = np.abs(product[row, column] - truth[shown]).mean()
        moved = np.abs(product[(row + 12) % SIZE[0], column] - truth[shown]).mean()
        assert error < 16 and error < moved


def test_folders_that_were_not_rendered_have_none(rendered, tmp_path):
    root, _ = rendered
    assert Correspondence.of(tmp_path) is None
    shutil.copy(root / STAMP, tmp_path / STAMP)
    assert Correspondence.of(tmp_path) is not None
    text = (root / STAMP).read_text()
    (tmp_path / STAMP).write_text(text.replace('"renderer": 2', '"renderer": 1'))
    assert Correspondence.of(tmp_path) is None
