"""Joints of both formats, their missing marks, and the drawing."""

import json

import numpy as np
import pytest

from tests.data.folders import JOINTS, MISSING, body_25, coco_18, write_json
from vton.data import pose
from vton.data.images import Origin
from vton.data.sample import DataError

ORIGIN = Origin("viton_hd", "test", "00891_00")
READERS = {"viton_hd": (pose.read_body_25, body_25), "dresscode": (pose.read_coco_18, coco_18)}


@pytest.mark.parametrize("name", READERS)
def test_both_formats_give_the_same_joints(tmp_path, name):
    read, content = READERS[name]
    write_json(tmp_path / "a.json", content())
    joints = read(tmp_path / "a.json", ORIGIN)
    found = np.arange(18) != MISSING
    assert joints.dtype == np.float32
    np.testing.assert_allclose(joints[found, :2], JOINTS[found], atol=1e-6)
    assert joints[found, 2].all() and not joints[MISSING].any()


@pytest.mark.parametrize("name", READERS)
def test_a_byte_order_mark_is_skipped(tmp_path, name):
    read, content = READERS[name]
    (tmp_path / "a.json").write_text(json.dumps(content()), encoding="utf-8-sig")
    assert read(tmp_path / "a.json", ORIGIN)[0, 2] == 1


@pytest.mark.parametrize("found", [1, 2, 12])
@pytest.mark.parametrize("name", READERS)
def test_fractions_are_refused_however_few_joints(tmp_path, name, found):
    """Taken for pixels, they would be valid joints in the picture's corner."""
    read, content = READERS[name]
    canvas = (768, 1024) if name == "viton_hd" else (384, 512)
    missing = tuple(range(found, 18))
    write_json(tmp_path / "a.json", content(JOINTS / canvas, missing))
    with pytest.raises(DataError, match=r"keypoints lie between 0 and 0\.\d+, not in pixels of"):
        read(tmp_path / "a.json", ORIGIN)
    write_json(tmp_path / "a.json", content(JOINTS, missing))
    assert read(tmp_path / "a.json", ORIGIN)[:, 2].sum() == found
    if found == 1:  # one pixel from the corner
        beside = np.full_like(JOINTS, 1.2) / canvas
        write_json(tmp_path / "a.json", content(beside, missing))
        assert read(tmp_path / "a.json", ORIGIN)[0, 2] == 1


@pytest.mark.parametrize("name", READERS)
def test_joint_at_the_upper_border_is_outside(tmp_path, name):
    read, content = READERS[name]
    cropped = JOINTS.copy()
    cropped[0, 1] = 0  # DressCode's heads: "present" at y = 0 with confidence
    write_json(tmp_path / "a.json", content(cropped))
    joints = read(tmp_path / "a.json", ORIGIN)
    assert not joints[0].any() and joints[1, 2] == 1


def test_most_certain_person_is_taken(tmp_path):
    two = body_25()
    ghost = np.zeros((25, 3))
    ghost[0] = (700, 900, 0.3)
    two["people"].insert(0, {"pose_keypoints_2d": ghost.ravel().tolist()})
    write_json(tmp_path / "a.json", two)
    nose = pose.read_body_25(tmp_path / "a.json", ORIGIN)[0, :2]
    np.testing.assert_allclose(nose, JOINTS[0], atol=1e-6)


def test_mirror_exchanges_sides_and_is_its_own_inverse():
    joints = np.column_stack([JOINTS, np.ones(18)]).astype(np.float32)
    joints[MISSING] = 0
    mirrored = pose.mirror(joints)
    left, right = pose.NAMES.index("left wrist"), pose.NAMES.index("right wrist")
    expected = (1 - joints[left, 0], joints[left, 1], 1)
    np.testing.assert_allclose(mirrored[right], expected, atol=1e-6)
    assert not mirrored[pose.NAMES.index("right ear")].any()
    np.testing.assert_allclose(pose.mirror(mirrored), joints, atol=1e-6)
    for here, there in enumerate(pose.MIRROR):
        name = pose.NAMES[here]
        swapped = name.replace("left", "?").replace("right", "left").replace("?", "right")
        assert pose.NAMES[there] == swapped


def test_skeleton_shows_valid_limbs_only():
    joints = np.column_stack([JOINTS, np.ones(18)]).astype(np.float32)
    whole = pose.draw_skeleton(joints, (128, 96))
    assert whole.shape == (128, 96, 3) and whole.dtype == np.uint8
    x, y = JOINTS[[6, 7]].mean(0) * (96, 128)
    shade = np.multiply(pose.COLOURS[pose.LIMBS.index((6, 7))], pose.LIMB_SHADE)
    assert np.allclose(whole[round(y), round(x)], shade, atol=1)
    joints[7] = 0
    assert not pose.draw_skeleton(joints, (128, 96))[round(y), round(x)].any()
    assert not pose.draw_skeleton(np.zeros((18, 3), np.float32), (128, 96)).any()
