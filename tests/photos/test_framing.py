import numpy as np
import pytest
from PIL import Image

from vton.data import pose
from vton.photos.framing import Frame, centred, feathered, person_frame, trunk

RNG = np.random.default_rng(0)


def noise(width, height):
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def standing(neck=(0.5, 0.2), hips=0.5):
    joints = np.zeros((18, 3), np.float32)
    joints[pose.NECK] = *neck, 1
    for joint, across in ((pose.RIGHT_SHOULDER, -0.03), (pose.LEFT_SHOULDER, 0.03)):
        joints[joint] = neck[0] + across, neck[1], 1
    for joint, across in ((pose.RIGHT_HIP, -0.04), (pose.LEFT_HIP, 0.04)):
        joints[joint] = neck[0] + across, hips, 1
    return joints


def test_joints_there_and_back():
    frame = Frame(-20, 30, 300, 400)
    joints = standing()
    back = frame.to_photo(frame.to_frame(joints, (640, 480)), (640, 480))
    np.testing.assert_allclose(back, joints, atol=1e-6)


def test_a_photo_in_the_layouts_manner_is_not_cut():
    joints = standing(neck=(0.5, 0.31), hips=0.31 + 0.385)
    assert person_frame(joints, (768, 1024), "viton_hd", 0.75) == Frame(0, 0, 768, 1024)


FRAMINGS = [("viton_hd", 0.385, 0.31), ("dresscode", 0.295, 0.115)]


@pytest.mark.parametrize(("layout", "share", "top"), FRAMINGS)
def test_the_frame_shows_what_the_layouts_photos_show(layout, share, top):
    joints = standing(neck=(0.5, 0.4), hips=0.5)
    frame = person_frame(joints, (2000, 3000), layout, 0.75)
    assert frame.width / frame.height == pytest.approx(0.75)
    neck, torso = trunk(frame.to_frame(joints, (2000, 3000)) * np.float32([0.75, 1, 1]))
    assert torso == pytest.approx(share, abs=1e-3)
    assert neck[1] == pytest.approx(top, abs=1e-3)


def test_a_frame_moves_into_the_photo_and_overhangs_only_where_it_must():
    joints = standing(neck=(0.9, 0.3), hips=0.4)
    frame = person_frame(joints, (1000, 1000), "viton_hd", 0.75)
    assert frame.left >= 0 and frame.left + frame.width <= 1000 + 1e-6
    wide = person_frame(standing(neck=(0.5, 0.3), hips=0.8), (300, 1000), "viton_hd", 0.75)
    assert wide.width > 300 and wide.left == pytest.approx((300 - wide.width) / 2)


def test_what_lies_beyond_the_photo_repeats_its_edge():
    photo = Image.new("RGB", (60, 80), (10, 20, 30))
    cut = Frame(-30, 0, 120, 160).cut(photo, (160, 120))
    assert np.unique(np.asarray(cut).reshape(-1, 3), axis=0).tolist() == [[10, 20, 30]]
    whole = np.asarray(Frame(0, 0, 60, 80).cut(photo, (40, 30)))
    assert whole.shape == (40, 30, 3)


def test_pasting_back_changes_nothing_beyond_mask_and_seam():
    photo = noise(400, 300)
    frame = Frame(57.3, 20.6, 180, 240)
    mask = np.zeros((96, 72), bool)
    mask[40:60, 30:50] = True
    drawn = Image.new("RGB", (72, 96), (255, 0, 0))
    pasted = np.asarray(frame.paste(photo, drawn, mask))
    before = np.asarray(photo)
    changed = (pasted != before).any(2)
    rows, columns = changed.nonzero()
    scale = 240 / 96
    margin = (0.02 * 96 + 2) * scale
    assert rows.min() >= 20.6 + 40 * scale - margin and rows.max() <= 20.6 + 60 * scale + margin
    assert columns.min() >= 57.3 + 30 * scale - margin
    assert columns.max() <= 57.3 + 50 * scale + margin
    middle = pasted[round(20.6 + 50 * scale), round(57.3 + 40 * scale)]
    assert middle.tolist() == [255, 0, 0]


def test_a_cut_picture_pasted_back_is_the_photo():
    smooth = Image.fromarray(np.indices((300, 400)).sum(0).astype(np.uint8)[..., None].repeat(3, 2))
    frame = Frame(40, 30, 150, 200)
    drawn = frame.cut(smooth, (200, 150))
    pasted = frame.paste(smooth, drawn, np.ones((200, 150), bool))
    inside = (slice(32, 228), slice(42, 188))
    difference = np.asarray(pasted)[inside].astype(int) - np.asarray(smooth)[inside]
    assert np.abs(difference).max() <= 1


def test_the_seam_falls_from_all_to_nothing():
    mask = np.zeros((200, 150), bool)
    mask[80:120, 60:90] = True
    alpha = np.asarray(feathered(mask))
    assert alpha[mask].min() == 255 and alpha[:70].max() == 0
    ramp = alpha[120:126, 75].astype(int)
    assert (np.diff(ramp) <= 0).all() and 0 < ramp[1] < 255


def test_a_centred_frame_holds_its_box():
    frame = centred(0.75, (10, 20, 110, 60))
    assert frame.width == pytest.approx(100) and frame.height == pytest.approx(100 / 0.75)
    assert frame.left == 10 and frame.top + frame.height / 2 == pytest.approx(40)


def test_a_torso_follows_from_what_is_seen():
    joints = standing(neck=(0.5, 0.2), hips=0.5) * np.float32([100, 100, 1])
    assert trunk(joints)[1] == pytest.approx(30, rel=1e-5)
    legs = np.zeros_like(joints)
    legs[pose.RIGHT_HIP], legs[pose.RIGHT_KNEE] = (48, 50, 1), (48, 75, 1)
    neck, torso = trunk(legs)
    assert torso == pytest.approx(30) and neck.tolist() == [48, 20]
    assert trunk(np.zeros((18, 3)))[1] == 0


@pytest.mark.parametrize(
    ("frame", "shown"),
    [
        (Frame(-30, 0, 120, 160), True),
        (Frame(-120, 0, 119, 160), False),
        (Frame(-120, 0, 120.5, 160), False),  # less than a pixel
        (Frame(-120, 0, 121, 160), True),
        (Frame(60, 0, 120, 160), False),
        (Frame(0, 80, 60, 80), False),
        (Frame(0, -80, 60, 80), False),
    ],
)
def test_a_frame_in_the_padding_shows_nothing(frame, shown):
    photo = noise(60, 80)
    assert frame.shows(photo.size) == shown
    if shown:
        assert frame.cut(photo, (160, 120)).size == (120, 160)
