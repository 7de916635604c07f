"""Captions as IDM-VTON builds them, and the fallback."""

import pytest

from tests.data.folders import config, write_dresscode, write_json, write_viton_hd
from vton.data import captions
from vton.data.dataset import TryOnDataset, open_folder
from vton.data.sample import DataError

NAMES = (
    "item",
    "details",
    "looks",
    "colors",
    "prints",
    "textures",
    "sleeveLength",
    "length",
    "neckLine",
    "fit",
    "shape",
)


def entry(name, **tags):
    return {"file_name": name, "category_name": "TOPS",
            "tag_info": [{"tag_name": tag, "tag_category": tags.get(tag)} for tag in NAMES]}  # fmt: skip


def test_sleeve_neckline_and_item_in_this_order(tmp_path):
    tags = [
        entry("00001_00.jpg", item="T-shirts", sleeveLength="Short Sleeve", neckLine="Round Neck", colors="red"),
        entry("00002_00.jpg", item="tank top", neckLine="V Neck"),
        entry("00003_00.jpg"),
    ]
    write_json(tmp_path / "tags.json", {"data": tags})
    assert captions.read_tags(tmp_path / "tags.json") == {
        "00001_00": "Short Sleeve Round Neck T-shirts",
        "00002_00": "V Neck tank top",
    }


@pytest.mark.parametrize("content", ["", "[]", '{"data": 3}', '{"data": [{"file_name": "a.jpg"}]}'])
def test_broken_tags_are_an_error_with_the_path(tmp_path, content):
    (tmp_path / "tags.json").write_text(content)
    with pytest.raises(DataError, match=r"tags\.json"):
        captions.read_tags(tmp_path / "tags.json")


def test_samples_carry_the_caption_of_their_garment(tmp_path):
    write_viton_hd(tmp_path, train=1, test=2)
    write_json(
        tmp_path / "test/vitonhd_test_tagged.json",
        {"data": [entry("01001_00.jpg", item="blouse", sleeveLength="long")]},
    )
    folder = open_folder(config("viton_hd", tmp_path, caption_fallback="tops"))
    unpaired = TryOnDataset(folder, "test", "unpaired")[0]  # person 01000, garment 01001
    assert unpaired.person_caption == "model is wearing long blouse"
    assert unpaired.garment_caption == "a photo of long blouse"
    assert TryOnDataset(folder, "test", "paired")[0].garment_caption == "a photo of tops"


def test_dresscode_lines(tmp_path):
    write_dresscode(tmp_path, count=1)
    (tmp_path / "dresses/dc_caption.txt").write_text("000004_1.jpg long  red dress\r\n000005_1.jpg\n\n")
    folder = open_folder(config("dresscode", tmp_path, category="dresses"))
    assert TryOnDataset(folder, "train", "paired")[0].garment_caption == "a photo of long red dress"
    assert TryOnDataset(folder, "test", "paired")[0].person_caption == "model is wearing shirts"
