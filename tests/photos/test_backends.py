import re

import numpy as np
import pytest
import torch
from PIL import Image

from vton.data import labels, pose
from vton.errors import UserError
from vton.photos import blaze, small, vitpose
from vton.photos.backends import BACKENDS, Networks, backend
from vton.photos.parser.network import HEIGHT, WIDTH, Reading
from vton.photos.segformer import ARMS, FEET, FROM_FASHN, LEGS, Fashn, Segformer
from vton.weights import photo_networks

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 96, 3), dtype=np.uint8))


def standing():
    joints = np.zeros((18, 3), np.float32)
    places = {
        pose.ARMS[0]: ((0.3, 0.3), (0.2, 0.45), (0.2, 0.6)),
        pose.ARMS[1]: ((0.7, 0.3), (0.8, 0.45), (0.8, 0.6)),
        pose.LEGS[0]: ((0.4, 0.6), (0.4, 0.75), (0.4, 0.95)),
        pose.LEGS[1]: ((0.6, 0.6), (0.6, 0.75), (0.6, 0.95)),
    }
    for limb, of_limb in places.items():
        joints[list(limb)] = [(*place, 1) for place in of_limb]
    return joints


# ---- mapping tables, label by label ----

FASHN = {
    "background": labels.BACKGROUND, "face": labels.FACE, "hair": labels.HAIR, "top": labels.UPPER,
    "dress": labels.DRESS, "skirt": labels.SKIRT, "pants": labels.PANTS, "belt": labels.BELT,
    "bag": labels.BAG, "hat": labels.HAT, "scarf": labels.SCARF, "glasses": labels.SUNGLASSES,
    "arms": ARMS, "hands": ARMS, "legs": LEGS, "feet": FEET, "torso": labels.NECK,
    "jewelry": labels.NECK,
}  # fmt: skip
ATR = (
    *("background", "hat", "hair", "sunglasses", "upper", "skirt", "pants", "dress", "belt"),
    *("left shoe", "right shoe", "face", "left leg", "right leg", "left arm", "right arm"),
    *("bag", "scarf"),
)
COCO_17 = (
    *("nose", "left eye", "right eye", "left ear", "right ear", "left shoulder"),
    *("right shoulder", "left elbow", "right elbow", "left wrist", "right wrist", "left hip"),
    *("right hip", "left knee", "right knee", "left ankle", "right ankle"),
)
BLAZE_33 = {
    0: "nose", 2: "left eye", 5: "right eye", 7: "left ear", 8: "right ear", 11: "left shoulder",
    12: "right shoulder", 13: "left elbow", 14: "right elbow", 15: "left wrist",
    16: "right wrist", 23: "left hip", 24: "right hip", 25: "left knee", 26: "right knee",
    27: "left ankle", 28: "right ankle",
}  # fmt: skip


@pytest.mark.parametrize(("place", "name"), enumerate(FASHN))
def test_each_label_of_fashn(place, name):
    assert FROM_FASHN[place] == FASHN[name]


@pytest.mark.parametrize(("place", "name"), enumerate(ATR))
def test_each_label_of_segformer(place, name):
    assert labels.NAMES[Segformer.table[place]] == name


@pytest.mark.parametrize(("place", "name"), enumerate(COCO_17))
def test_each_joint_of_vitpose(place, name):
    assert pose.NAMES[vitpose.FROM_COCO_17[place]] == name


@pytest.mark.parametrize("joint", blaze.FROM_BLAZE)
def test_each_joint_of_blaze(joint):
    assert pose.NAMES[joint] == BLAZE_33[blaze.FROM_BLAZE[joint]]


def test_every_joint_but_the_neck_comes_from_a_network():
    own = set(range(18)) - {pose.NECK}
    assert set(blaze.FROM_BLAZE) == set(vitpose.FROM_COCO_17.tolist()) == own


# ---- the hub's formats, with tiny random weights ----


@pytest.fixture(scope="module")
def segformer_folder(tmp_path_factory):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=18, depths=[1] * 4, hidden_sizes=[8, 8, 16, 16], decoder_hidden_size=16,
        num_attention_heads=[1] * 4,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("segformer")
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["fashn", "segformer"])
def test_segformers_read_and_map(name, segformer_folder):
    parser = backend("parser", f"{name}:{segformer_folder}")
    parse = parser.parse(PICTURE, standing())
    assert parse.shape == (128, 96) and parse.dtype == np.uint8 and parse.max() < labels.COUNT
    with torch.no_grad():
        scores = torch.nn.functional.interpolate(
            parser.scores(PICTURE)[None], (128, 96), mode="bilinear"
        )[0]
    ids = parser.table[scores.argmax(0).numpy()]
    plain = (ids < labels.COUNT) & (ids != labels.FACE)
    assert (parse[plain] == ids[plain]).all()
    assert len(parser.facts.digest) == 64 and "non-commercial" in parser.facts.licence


def test_limbs_without_sides_get_those_of_the_nearest_bones(segformer_folder):
    parser = Fashn(str(segformer_folder))
    ids = np.zeros((100, 100), int)
    ids[30:60, 15:25] = ARMS
    ids[30:60, 75:85] = ARMS
    ids[62:94, 36:44], ids[62:94, 56:64] = LEGS, LEGS
    ids[94:99, 36:44], ids[94:99, 56:64] = FEET, FEET
    parse = parser.mapped(ids, standing())
    assert set(np.unique(parse[30:60, 15:25])) == {labels.RIGHT_ARM}
    assert set(np.unique(parse[30:60, 75:85])) == {labels.LEFT_ARM}
    assert set(np.unique(parse[62:94, 36:44])) == {labels.RIGHT_LEG}
    assert set(np.unique(parse[62:94, 56:64])) == {labels.LEFT_LEG}
    assert set(np.unique(parse[94:99, 36:44])) == {labels.RIGHT_SHOE}
    assert set(np.unique(parse[94:99, 56:64])) == {labels.LEFT_SHOE}
    nobody = parser.mapped(ids, np.zeros((18, 3), np.float32))
    assert (nobody[30:60, 15:25] == labels.RIGHT_ARM).all()


def test_the_face_below_the_chin_is_neck(segformer_folder):
    parser = Segformer(str(segformer_folder))
    ids = np.zeros((100, 100), int)
    ids[10:40, 40:60] = labels.FACE
    parse = parser.mapped(ids, standing())
    assert (parse[10:25, 40:60] == labels.FACE).all() and (parse[30:40, 45:55] == labels.NECK).all()


def test_vitpose_reads_one_person_in_a_box(tmp_path, monkeypatch):
    from transformers import VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation

    torch.manual_seed(0)
    backbone = VitPoseBackboneConfig(
        image_size=(64, 48), patch_size=(16, 16), hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16, out_indices=[1],
    )  # fmt: skip
    config = VitPoseConfig(backbone_config=backbone, num_labels=17)
    VitPoseForPoseEstimation(config).save_pretrained(tmp_path)
    network = backend("pose", f"vitpose:{tmp_path}")
    coarse = np.concatenate([standing()[:, :2], np.ones((18, 1))], 1).astype(np.float32)
    coarse[coarse[:, 0] == 0, 2] = 0
    monkeypatch.setattr(network.finder, "people", lambda photo: [coarse])
    (joints,) = network.people(PICTURE)
    assert joints.shape == (18, 3) and np.isfinite(joints).all()
    assert ((joints[:, 2] >= 0) & (joints[:, 2] <= 1)).all()
    frame = network.box(PICTURE, coarse)
    assert frame.left < 0.2 * 96 and frame.left + frame.width > 0.8 * 96


@pytest.mark.parametrize("beside", [False, True])
def test_somebody_seen_in_the_padding_alone_is_nobody(monkeypatch, beside):
    """A narrow photo is read with its blurred edges around it; figures may be seen there."""
    photo = Image.fromarray(np.full((400, 40, 3), 200, np.uint8))
    ids = torch.zeros((HEIGHT, WIDTH), dtype=torch.int64)
    ids[20:50, 5:15] = labels.UPPER
    ids[10:20, 5:15] = labels.FACE
    if beside:  # somebody in the photo, who is found
        ids[:, WIDTH // 2 - 4 : WIDTH // 2 + 4] = ids[:, 6:14]
    maps = torch.nn.functional.one_hot(ids, 22).permute(2, 0, 1).float()
    joints = standing()
    joints[pose.NECK] = joints[pose.NOSE] = 0.5, 0.2, 1
    monkeypatch.setattr(small.SmallPose, "read", lambda self, cut: Reading(maps, maps, joints))
    found = small.SmallPose().people(photo)
    assert len(found) == beside
    assert all(0 < person[pose.NECK, 0] < 1 for person in found)


def test_vitpose_passes_over_joints_beyond_the_photo(monkeypatch):
    network = object.__new__(vitpose.VitPose)
    network.size = (64, 48)
    inside = standing()
    beyond = inside - np.float32([3, 0, 0])
    network.finder = type("Finder", (), {"people": lambda self, photo: [beyond, inside]})()
    monkeypatch.setattr(vitpose.VitPose, "joints", lambda self, photo, coarse: coarse)
    assert [found is inside for found in network.people(PICTURE)] == [True]


def test_vitposes_peaks_become_joints():
    heat = np.zeros((17, 16, 12), np.float32)
    heat[0, 4, 6], heat[0, 4, 7] = 0.9, 0.5
    heat[5, 8, 9], heat[6, 8, 3] = 0.8, 0.6
    joints = vitpose.joints_of(heat)
    np.testing.assert_allclose(joints[pose.NOSE], [6.75 / 12, 4.5 / 16, 0.9], atol=1e-6)
    np.testing.assert_allclose(joints[pose.NECK], [6.5 / 12, 8.5 / 16, 0.6], atol=1e-6)


class _DensePose(torch.nn.Module):
    """What a DensePose file gives: one box with the left half of a body, and a larger one."""

    def forward(self, picture: torch.Tensor):
        boxes = torch.tensor([[10.0, 20.0, 50.0, 100.0], [0.0, 0.0, 1.0, 1.0]])
        coarse = torch.zeros(2, 2, 8, 8)
        coarse[:, 0] = 0.5
        coarse[:, 1, :, :4] = 1.0
        fine = torch.zeros(2, 25, 8, 8)
        fine[:, 15] = 1.0
        uv = torch.zeros(2, 25, 8, 8)
        return boxes, coarse, fine, uv, uv


def test_torchscript_paints_parts_inside_the_box(tmp_path):
    path = tmp_path / "densepose.torchscript"
    torch.jit.script(_DensePose()).save(str(path))
    network = backend("densepose", f"torchscript:{path}")
    parts = network.parts(PICTURE)
    assert parts.shape == (128, 96) and (parts[25:95, 12:25] == 15).all()
    assert (parts[:, 52:] == 0).all() and (parts[105:] == 0).all()


class _Other(torch.nn.Module):
    def forward(self, picture: torch.Tensor):
        return picture[0], picture, picture


def test_another_torchscript_file_is_one_line(tmp_path):
    path = tmp_path / "other.torchscript"
    torch.jit.script(_Other()).save(str(path))
    with pytest.raises(UserError, match="does not read a picture as DensePose's files do"):
        backend("densepose", f"torchscript:{path}").parts(PICTURE)


def onnx_of(path, operator, read, given, **attributes):
    """A network of one operator. read, given: shapes."""
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node(operator, ["picture"], ["map"], **attributes)
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [node], "network",
        [onnx.helper.make_tensor_value_info("picture", kind, read)],
        [onnx.helper.make_tensor_value_info("map", kind, given)],
    )  # fmt: skip
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return backend("garment mask", f"network:{path}")


@pytest.mark.parametrize("shape", [[1, 3, 32, 24], [1, 3], [3, 32, 24]])
def test_another_onnx_file_is_one_line(tmp_path, shape):
    network = onnx_of(tmp_path / "other.onnx", "Identity", shape, shape)
    with pytest.raises(UserError, match=r"does not read a picture \(1, 3, H, W\) and give a map"):
        network.silhouette(PICTURE)


def test_a_network_of_salient_objects_by_onnx(tmp_path):
    network = onnx_of(
        tmp_path / "salient.onnx", "ReduceMean", [1, 3, 32, 24], [1, 1, 32, 24],
        axes=[1], keepdims=1,
    )  # fmt: skip
    pixels = np.zeros((64, 48, 3), np.uint8)
    pixels[16:48, 12:36] = 255
    mask = network.silhouette(Image.fromarray(pixels))
    assert mask[20:44, 16:32].all() and not mask[:12].any()


# ---- blaze without its files: what surrounds the networks ----


def test_blazes_anchors_are_mediapipes():
    centres = blaze.anchors()
    assert centres.shape == (2254, 2)
    np.testing.assert_allclose(centres[0], [0.5 / 28] * 2)
    np.testing.assert_allclose(centres[2], [1.5 / 28, 0.5 / 28])
    np.testing.assert_allclose(centres[28 * 28 * 2], [0.5 / 14] * 2)
    np.testing.assert_allclose(centres[-1], [6.5 / 7] * 2)


def test_blazes_detections_are_merged_by_person():
    centres = blaze.anchors()
    boxes = np.zeros((2254, 12), np.float32)
    scores = np.full(2254, -100.0, np.float32)
    for row, score in ((2000, 3.0), (2001, 1.0), (1200, 2.0)):
        boxes[row, 2:4] = 56
        boxes[row, 4:] = np.tile([0, 28], 4)
        scores[row] = score
    found = blaze.decode(boxes, scores, centres)
    assert len(found) == 2  # rows 2000 and 2001 share their cell
    np.testing.assert_allclose(found[0, :2], centres[2000], atol=1e-6)
    np.testing.assert_allclose(found[0, 4:6], centres[2000] + [0, 28 / 224], atol=1e-6)


def test_heat_maps_refine_landmarks():
    heat = np.full((64, 64, 39), -20.0)
    heat[30, 33, 0] = 10.0
    moved = blaze.refined(np.full((39, 2), 0.5), heat)
    np.testing.assert_allclose(moved[0], [33 / 64, 30 / 64])
    np.testing.assert_allclose(moved[1], [0.5, 0.5])


# ---- what is missing, and how to get it ----


def test_missing_weights_name_the_command_that_fetches_them(tmp_path, monkeypatch):
    monkeypatch.setenv("VTON_PHOTO_WEIGHTS", str(tmp_path))
    pytest.importorskip("ai_edge_litert")
    with pytest.raises(UserError, match=r"pose_detection.tflite.*`vton weights photo`"):
        Networks.named(pose="blaze")
    (tmp_path / "pose_detection.tflite").write_bytes(b"other")
    with pytest.raises(UserError, match="not the published file"):
        Networks.named(pose="blaze")
    for network in (Fashn, Segformer, vitpose.VitPose):
        name, revision = network.default.split("@")
        with pytest.raises(UserError, match=f"`hf download {name} --revision {revision}`"):
            network()
    with pytest.raises(UserError, match=r"`curl -LO https://huggingface.co/hr16/\S+`"):
        backend("densepose", "torchscript")
    with pytest.raises(UserError, match=r"`curl -LO https://github.com/\S+`"):
        backend("garment mask", "network:absent.onnx")


@pytest.mark.parametrize("network", [Fashn, Segformer, vitpose.VitPose])
def test_what_comes_from_the_hub_is_pinned_to_a_whole_commit(network):
    assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", network.default)


def test_broken_weights_are_one_line(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"no network")
    for task, name in (("densepose", "torchscript"), ("garment mask", "network")):
        with pytest.raises(UserError) as refused:
            backend(task, f"{name}:{path}")
        assert str(path) in str(refused.value) and "\n" not in str(refused.value)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds no network of the kind"):
        backend("parser", f"fashn:{tmp_path}")


def test_a_missing_package_names_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(UserError, match=r"make setup, or pip install -e '\.\[photo\]'"):
        backend("pose", "blaze")


@pytest.mark.parametrize("task", BACKENDS)
def test_an_unknown_backend_names_its_neighbour(task):
    with pytest.raises(UserError, match=f"no such {task} backend"):
        backend(task, "smal")


# ---- fetching ----


def _published(folder, content=b"network"):
    """A wheel with one file, and where it and the file itself are served from a folder."""
    import hashlib
    import zipfile

    wheel = folder / "wheel.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("mediapipe/modules/pose/a.tflite", content)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (folder / "a.tflite").write_bytes(content)
    own = hashlib.sha256(b"network").hexdigest()
    file = photo_networks.PublishedFile
    member = photo_networks.Member(
        "mediapipe/modules/pose/a.tflite", file((folder / "a.tflite").as_uri(), "a.tflite", own)
    )
    return file(wheel.as_uri(), "wheel.whl", digest), (member,)


def test_files_come_out_of_the_wheel_and_else_from_google(tmp_path):
    served = tmp_path / "served"
    served.mkdir()
    wheel, members = _published(served)
    to = tmp_path / "to"
    fetched = list(photo_networks.fetch_photo(to, wheel, members))
    assert fetched == [(to / "a.tflite", "fetched from mediapipe's wheel, checked")]
    ((_, done),) = photo_networks.fetch_photo(to, wheel, members)
    assert done == "present, checked"
    assert [path.name for path in to.iterdir()] == ["a.tflite"]

    (to / "a.tflite").unlink()
    (served / "wheel.whl").unlink()  # yanked
    ((_, done),) = photo_networks.fetch_photo(to, wheel, members)
    assert done == "fetched from Google, checked"
    (to / "a.tflite").unlink()
    (served / "a.tflite").write_bytes(b"another")
    with pytest.raises(UserError, match="The second source failed too"):
        list(photo_networks.fetch_photo(to, wheel, members))
    assert not (to / "a.tflite").exists()
