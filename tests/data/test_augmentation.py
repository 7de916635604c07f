"""Augmentation: every part of a record changes together, by draws of (seed, position) alone."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.folders import one_record, same_record
from vton.config import AugmentConfig
from vton.data import augmentation, labels, pose
from vton.data.augmentation import Changes, ColourChange, Move, augment
from vton.data.compact import recoloured
from vton.data.transforms import to_sample

STILL = AugmentConfig(flip=0, affine=0, garment_affine=0, colour=0)
BUSY = AugmentConfig(flip=0.5, affine=1, garment_affine=1, colour=1, mask_dilate_px=3, box_mask=0.3)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return one_record(tmp_path_factory.mktemp("data"))


def test_draws_depend_on_seed_and_position_alone():
    assert Changes.draw(BUSY, 3, 17) == Changes.draw(BUSY, 3, 17)
    drawn = {Changes.draw(BUSY, seed, position) for seed in range(10) for position in range(100)}
    assert len(drawn) == 1000


def test_switching_one_change_off_leaves_the_others():
    for position in range(20):
        with_flip = Changes.draw(BUSY, 0, position)
        without = Changes.draw(replace(BUSY, flip=0, affine=0), 0, position)
        assert replace(with_flip, flip=False, person=None) == without


def test_draws_keep_to_the_configured_ranges_and_rates():
    drawn = [Changes.draw(BUSY, 0, position) for position in range(2000)]
    assert 0.45 < np.mean([changes.flip for changes in drawn]) < 0.55
    assert 0.26 < np.mean([changes.box for changes in drawn]) < 0.34
    assert {changes.dilate_px for changes in drawn} == {0, 1, 2, 3}
    scales = [changes.person.scale for changes in drawn]
    assert 0.8 <= min(scales) < 0.81 and 1.19 < max(scales) <= 1.2
    assert 0.19 < max(abs(changes.person.down) for changes in drawn) <= 0.2
    assert 0.049 < max(abs(changes.colour.hue) for changes in drawn) <= 0.05


def test_nothing_drawn_changes_nothing(record):
    assert same_record(augment(record, Changes.draw(STILL, 0, 0)), record)


def test_flip_twice_is_the_identity(record):
    once = augmentation.flip(record)
    assert not torch.equal(once.person, record.person)
    assert same_record(augmentation.flip(once), record)


def test_flip_exchanges_left_and_right_everywhere(record):
    flipped = augmentation.flip(record)
    assert torch.equal(flipped.person, record.person.flip(-1))
    assert torch.equal(flipped.garment, record.garment.flip(-1))
    left = record.parse == labels.LEFT_ARM
    assert left.any() and torch.equal(left.flip(-1), flipped.parse == labels.RIGHT_ARM)
    assert torch.equal((record.densepose == 19).flip(-1), flipped.densepose == 20)
    mirrored = 1 - record.joints[pose.LEFT_WRIST, 0]
    np.testing.assert_allclose(flipped.joints[pose.RIGHT_WRIST, 0], mirrored, atol=1e-6)
    # The pose map is drawn anew: the colours of the sides stay with the sides.
    assert not torch.equal(to_sample(flipped).pose_map, to_sample(record).pose_map.flip(-1))


@settings(max_examples=25, deadline=None)
@given(position=st.integers(0, 10**6))
def test_augmented_samples_keep_the_contract(record, position):
    """Parts must still describe the same picture.

    to_sample checks shapes, ranges and polarity.
    """
    sample = to_sample(augment(record, Changes.draw(BUSY, 0, position)), position)
    assert sample.position == position and sample.truth is sample.person
    mask = sample.agnostic_mask
    assert set(mask.unique().tolist()) <= {0, 1}
    assert torch.equal(sample.agnostic, sample.person * (1 - mask))
    assert (mask[0][sample.parse == labels.UPPER] == 1).all()
    assert (sample.warped_garment.permute(1, 2, 0)[sample.warped_mask[0] == 0] == 1).all()
    assert set(sample.parse.unique().tolist()) <= set(range(labels.COUNT))


def test_record_is_left_alone(record):
    before = copy.deepcopy(record)
    augment(record, Changes.draw(BUSY, 0, 5))
    assert same_record(record, before)


def test_move_takes_labels_joints_and_picture_to_the_same_place(record):
    move = Move(scale=0.8, right=0.1, down=-0.1)
    moved = augmentation.move_person(record, move)
    height, width = record.size
    for label, forearm in ((labels.LEFT_ARM, [6, 7]), (labels.RIGHT_ARM, [3, 4])):
        x, y = (moved.joints[forearm, :2].mean(0) * (width, height)).astype(int)
        assert moved.parse[y, x] == label
        before_x, before_y = (record.joints[forearm, :2].mean(0) * (width, height)).astype(int)
        before = record.person[:, before_y, before_x].int()
        assert (moved.person[:, y, x].int() - before).abs().max() < 38
    expected = (record.joints[1, :2] - 0.5) * 0.8 + 0.5 + [0.1, -0.1]
    np.testing.assert_allclose(moved.joints[1, :2], expected, atol=1e-6)


def test_whole_pixel_shift_is_exact(record):
    height, width = record.size
    moved = augmentation.move_person(record, Move(scale=1, right=5 / width, down=3 / height))
    assert torch.equal(moved.parse[3:, 5:], record.parse[:-3, :-5])
    assert torch.equal(moved.agnostic_mask[:, 3:, 5:], record.agnostic_mask[:, :-3, :-5])
    assert torch.equal(moved.person[:, 3:, 5:], record.person[:, :-3, :-5])
    assert torch.equal(moved.parse[:, 0], moved.parse[:, 4])  # what comes in repeats the edge


def test_joints_that_leave_the_picture_become_invalid(record):
    moved = augmentation.move_person(record, Move(scale=1.2, right=0.2, down=0))
    wrist = pose.LEFT_WRIST
    assert record.joints[wrist, 2] == 1 and not moved.joints[wrist].any()
    assert moved.joints[:, :2].min() >= 0 and moved.joints[:, :2].max() <= 1


def test_move_that_would_lose_the_mask_is_not_made(record):
    corner = torch.zeros_like(record.agnostic_mask)
    corner[:, :6, :6] = True
    lost = replace(record, agnostic_mask=corner, warped_mask=corner & record.warped_mask)
    assert augmentation.move_person(lost, Move(scale=1.2, right=-0.2, down=-0.2)) is lost


def test_garment_moves_alone_on_its_background(record):
    moved = augmentation.move_garment(record, Move(scale=0.8, right=0.1, down=0))
    assert same_record(
        replace(moved, garment=record.garment, garment_mask=record.garment_mask), record
    )
    area = record.garment_mask.sum() * 0.64
    assert abs(moved.garment_mask.sum() - area) < 0.1 * area
    assert moved.garment[:, :2].min() > 247  # new border: white


def test_colour_change_is_one_function_for_all_pictures(record):
    """A patch of the same colour on person, garment and warped garment stays the same.

    Whites of other pictures and their means must not matter.
    """
    shared = torch.tensor([200, 40, 60], dtype=torch.uint8)[:, None, None]
    everywhere = torch.ones_like(record.garment_mask)
    patch = torch.arange(record.size[1]) < 20
    dark = torch.where(patch, shared, torch.zeros_like(record.person))
    light = torch.where(patch, shared, torch.full_like(record.person, 255))
    painted = replace(
        record, person=dark, garment=light, warped_garment=light, garment_mask=everywhere
    )
    changed = augmentation.change_colour(painted, ColourChange(0.9, 1.2, 0.8, 0.04))
    person, garment, warped = (
        recoloured(picture, changed.colour)
        for picture in (changed.person, changed.garment, changed.warped_garment)
    )
    assert torch.equal(person[:, :, :20], garment[:, :, :20])
    assert torch.equal(person[:, :, :20], warped[:, :, :20])
    assert not torch.allclose(person[:, 0, 0] * 255, shared[:, 0, 0].float(), atol=5)


def test_colour_change_stays_in_range_and_leaves_the_white_around_the_garment(record):
    changed = augmentation.change_colour(record, ColourChange(1.2, 1.2, 1.2, 0.05))
    low, high = recoloured(changed.person, changed.colour).aminmax()
    assert low >= 0 and high <= 1
    plain, sample = to_sample(record), to_sample(changed)
    background = ~record.garment_mask.expand(3, -1, -1)
    torch.testing.assert_close(sample.garment[background], plain.garment[background])
    assert not torch.allclose(sample.garment[~background], plain.garment[~background], atol=0.01)


def test_single_colour_changes_mean_what_they_say(record):
    rose = torch.tensor([160, 80, 80], dtype=torch.uint8)[:, None, None]
    flat = replace(record, person=rose.expand_as(record.person))

    def red(**change):
        values = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0} | change
        changed = augmentation.change_colour(flat, ColourChange(**values))
        return recoloured(changed.person, changed.colour)[:, 0, 0] * 255

    assert torch.allclose(red(), torch.tensor([160.0, 80, 80]), atol=0.1)
    assert torch.allclose(red(brightness=1.1), torch.tensor([176.0, 88, 88]), atol=0.1)
    assert torch.allclose(red(contrast=0.5), torch.tensor([143.75, 103.75, 103.75]), atol=0.1)
    grey = 0.299 * 160 + 0.701 * 80
    assert torch.allclose(red(saturation=0.0), torch.full((3,), grey), atol=0.1)
    turned = red(hue=0.05)
    luminance = torch.tensor([0.299, 0.587, 0.114])
    assert abs(float(turned @ luminance) - grey) < 0.1 and (turned - red()).abs().max() > 10


def test_dilation_and_box_grow_the_mask(record):
    still = Changes.draw(STILL, 0, 0)
    grown = augment(record, replace(still, dilate_px=2)).agnostic_mask
    boxed = augment(record, replace(still, box=True)).agnostic_mask
    assert (grown >= record.agnostic_mask).all() and grown.sum() > record.agnostic_mask.sum()
    rows = record.agnostic_mask[0].any(1).nonzero()
    columns = record.agnostic_mask[0].any(0).nonzero()
    area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    assert boxed.sum() == area and (boxed >= record.agnostic_mask).all()
