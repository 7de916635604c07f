"""Captions as IDM-VTON builds them, sentences around them, and the fallback."""

import json
import logging

import pytest

from tests.data.folders import config, write_dresscode, write_json, write_viton_hd
from vton.data import captions
from vton.data.check import check_folder
from vton.data.dataset import TryOnDataset, open_folder
from vton.data.module import TryOnDataModule
from vton.data.sample import DataError
from vton.data.stream import StreamItem

NAMES = (
    *("item", "details", "looks", "colors", "prints", "textures"),
    *("sleeveLength", "length", "neckLine", "fit", "shape"),
)


def entry(name, **tags):
    tag_info = [{"tag_name": tag, "tag_category": tags.get(tag)} for tag in NAMES]
    return {"file_name": name, "category_name": "TOPS", "tag_info": tag_info}


def test_sleeve_neckline_and_item_in_this_order(tmp_path):
    shirt = {"item": "T-shirts", "sleeveLength": "Short Sleeve", "neckLine": "Round Neck"}
    tags = [
        entry("00001_00.jpg", **shirt, colors="red"),
        entry("00002_00.jpg", item="tank top", neckLine="V Neck"),
        entry("00003_00.jpg"),
    ]
    write_json(tmp_path / "tags.json", {"data": tags})
    assert captions.read_tags(tmp_path / "tags.json") == {
        "00001_00": "Short Sleeve Round Neck T-shirts",
        "00002_00": "V Neck tank top",
    }


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tags.json", {"data": [entry("00001_00.jpg", item="a top")]}),
        ("test_gpt4o.json", {"00001_00": "a top"}),
    ],
)
def test_a_byte_order_mark_is_skipped(tmp_path, name, content):
    (tmp_path / name).write_text(json.dumps(content), encoding="utf-8-sig")
    assert captions.read(tmp_path / name, "viton_hd") == {"00001_00": "a top"}


def test_samples_carry_the_caption_of_their_garment(tmp_path):
    write_viton_hd(tmp_path, train=1, test=2)
    tags = [entry("01001_00.jpg", item="blouse", sleeveLength="long")]
    write_json(tmp_path / "test/vitonhd_test_tagged.json", {"data": tags})
    folder = open_folder(config("viton_hd", tmp_path, caption_fallback="tops"))
    unpaired = TryOnDataset(folder, "test", "unpaired")[0]  # person 01000, garment 01001
    assert unpaired.person_caption == "model is wearing long blouse"
    assert unpaired.garment_caption == "a photo of long blouse"
    assert TryOnDataset(folder, "test", "paired")[0].garment_caption == "a photo of tops"
    settings = {"caption_fallback": "clothes", "caption_source": "fallback"}
    generic = open_folder(config("viton_hd", tmp_path, **settings))
    assert TryOnDataset(generic, "test", "unpaired")[0].garment_caption == "a photo of clothes"
    assert TryOnDataset(generic, "test", "unpaired").without_caption(where_absent=True) == ""


def test_templates_stand_around_the_annotation(tmp_path):
    assert captions.Templates("worn: {}", "{}, flat").captions("a {} top") == {
        "person_caption": "worn: a {} top",
        "garment_caption": "a {} top, flat",
    }
    write_viton_hd(tmp_path, train=1, test=1)
    settings = config(
        "viton_hd", tmp_path, person_caption="{} on a model", garment_caption="best quality, {}"
    )
    data = TryOnDataModule(settings, seed=0, batch_size=1, eval_batch_size=1)
    held_out = TryOnDataset(open_folder(settings), "test", "paired")[0]
    for sample in (held_out, data.train_dataset()[StreamItem(0, 0)]):
        assert sample.person_caption == "shirts on a model"
        assert sample.garment_caption == "best quality, shirts"


def test_dresscode_lines(tmp_path):
    write_dresscode(tmp_path, count=1)
    (tmp_path / "dresses/dc_caption.txt").write_text("000004_1.jpg long  red dress\r\n\n")
    folder = open_folder(config("dresscode", tmp_path, category="dresses"))
    assert TryOnDataset(folder, "train", "paired")[0].garment_caption == "a photo of long red dress"
    assert TryOnDataset(folder, "test", "paired")[0].person_caption == "model is wearing dresses"


def open_loaders(settings) -> None:
    """What training and evaluation open, twice."""
    for _ in range(2):
        data = TryOnDataModule(settings, seed=0, batch_size=1, eval_batch_size=1)
        data.train_dataset()
        for order in ("paired", "unpaired"):
            data.eval_dataset(order)


def test_garments_that_a_caption_file_leaves_out_are_reported_once(tmp_path, caplog):
    root = write_viton_hd(tmp_path, train=1, test=3)
    tags = root / "test/vitonhd_test_tagged.json"
    write_json(tags, {"data": [entry("01000_00.jpg", item="blouse")]})
    settings = config("viton_hd", root, caption_fallback="tops")
    with caplog.at_level(logging.WARNING, "vton"):
        open_loaders(settings)
    line = (
        "2 of 3 garments have no caption; they get 'tops' (data.caption_fallback). "
        f"The first is 01001_00; captions come from {tags}."
    )
    # The training split has no file, and needs none.
    assert caplog.messages == [f"viton_hd test: {line}"]
    notes = [problem.message for problem in check_folder(settings)]
    absent = root / "train/vitonhd_train_tagged.json"
    assert f"paired: {line}" in notes
    assert any(f"{absent} (absent)" in note for note in notes)


def test_all_caption_files_of_a_split_share_a_line(tmp_path, caplog):
    root = write_dresscode(tmp_path, count=1)
    for category, number in (("dresses", 5), ("upper_body", 1)):
        (root / category / "dc_caption.txt").write_text(f"{number:06d}_1.jpg shirt\n")
    with caplog.at_level(logging.WARNING, "vton"):
        open_loaders(config("dresscode", root))
    message, held_out = [line for line in caplog.messages if "have no caption" in line]
    assert held_out.startswith("dresscode test: 1 of 3 garments")  # where a category has no file
    assert message.startswith("dresscode train: 3 of 3 garments")
    assert "upper_body/dc_caption.txt, " in message and "dresses/dc_caption.txt." in message
    assert "lower_body/dc_caption.txt (absent), " in message


def test_every_category_has_its_own_fallback(tmp_path):
    write_dresscode(tmp_path, count=1)
    pairs = TryOnDataset(open_folder(config("dresscode", tmp_path)), "train", "paired")
    words = {sample.category: sample.garment_caption for sample in pairs}
    assert words == {
        "upper_body": "a photo of shirts",
        "lower_body": "a photo of pants",
        "dresses": "a photo of dresses",
    }
    assert "they get 'shirts', 'pants', 'dresses'" in pairs.without_caption(where_absent=True)
    own = config("dresscode", tmp_path, caption_fallback_lower="a skirt")
    assert TryOnDataset(open_folder(own), "train", "paired")[1].garment_caption.endswith("a skirt")


def test_the_fallback_for_every_garment_is_that_of_its_category(tmp_path):
    root = write_dresscode(tmp_path, count=1)
    (root / "dresses/dc_caption.txt").write_text("000004_1.jpg long dress\n")
    settings = {"caption_source": "fallback", "caption_fallback_lower": "trousers"}
    folder = open_folder(config("dresscode", root, **settings))
    words = [sample.garment_caption for sample in TryOnDataset(folder, "train", "paired")]
    assert words == ["a photo of shirts", "a photo of trousers", "a photo of dresses"]


ANSWER = {
    "person": {"pose": "standing"},
    "clothing": {
        "upper cloth category": "t-shirt",
        "material": "cotton",
        "neckline": "round neck",
        "sleeve": "short sleeve",
    },
}


def test_descriptions_and_answers_of_other_methods(tmp_path):
    """Mobile-VTON's lists with colons, PromptDresser's JSON; IDM-VTON's tags come first."""
    root = write_viton_hd(tmp_path / "v", train=1, test=2)

    def captions_of() -> list[str]:
        pairs = TryOnDataset(open_folder(config("viton_hd", root)), "test", "paired")
        return [sample.garment_caption for sample in pairs]

    write_json(root / "test_gpt4o.json", {"01000_00": ANSWER, "01001_00.jpg": "a blue top"})
    expected = "a photo of short sleeve round neck cotton t-shirt"
    assert captions_of() == [expected, "a photo of a blue top"]
    (root / "test/image_descriptions.txt").write_text("01000_00.jpg: a red: top\n\n")
    assert captions_of() == ["a photo of a red: top", "a photo of shirts"]
    tags = [entry("01000_00.jpg", item="blouse")]
    write_json(root / "test/vitonhd_test_tagged.json", {"data": tags})
    assert captions_of()[0] == "a photo of blouse"

    other = write_dresscode(tmp_path / "d", count=1)
    (other / "dresses/dc_descriptions.txt").write_text("000004_1.jpg: a long dress\n")
    folder = open_folder(config("dresscode", other, category="dresses"))
    assert TryOnDataset(folder, "train", "paired")[0].garment_caption == "a photo of a long dress"


@pytest.mark.parametrize(
    "content", [[], {"01000_00": 3}, {"01000_00": {"clothing": {"sleeve": 1}}}]
)
def test_answers_of_another_form_are_refused(content, tmp_path):
    write_json(tmp_path / "test_gpt4o.json", content)
    with pytest.raises(DataError, match=r"test_gpt4o\.json"):
        captions.read(tmp_path / "test_gpt4o.json", "viton_hd")
