"""The warp's networks against plain loops and published facts."""

import pytest
import torch
from torch.nn import functional as F

from tests.batches import random_batch, randomised
from tests.models.test_encoders import TOWER
from vton.models.encoders import clip_image_encoder
from vton.models.settings import ClipConfig
from vton.models.warp.config import RefinementConfig, TpsConfig, WarpConfig
from vton.models.warp.losses import BENT, UNEVEN, order_loss
from vton.models.warp.network import WHITE, Refinement, TpsWarp, WarpNetwork, correlation, heat_maps
from vton.models.warp.tps import ThinPlateSpline, lattice


def small(correction: bool = False) -> WarpNetwork:
    tps = TpsConfig(size=(64, 48), widths=(8, 8, 16), regression=(16, 8))
    refinement = RefinementConfig((4, 8, 8), correction)
    return WarpNetwork(WarpConfig(tps=tps, refinement=refinement)).eval()


def wear(network, batch):
    return network(
        batch.garment, batch.garment_mask, batch.agnostic, batch.agnostic_mask, batch.keypoints
    )


def test_the_spline_interpolates_its_control_points():
    """Unmoved points give the identity; a point that lies on a pixel goes where it was moved."""
    spline = ThinPlateSpline(41, 21)
    identity = spline(lattice(5)[None])[0]
    y, x = torch.meshgrid(torch.linspace(-1, 1, 41), torch.linspace(-1, 1, 21), indexing="ij")
    torch.testing.assert_close(identity, torch.stack([x, y], -1), atol=1e-5, rtol=0)
    moved = lattice(5)[None].clone()
    moved[0, 12, 0] += 0.1  # the middle point, to the right
    assert spline(moved)[0, 20, 10].tolist() == pytest.approx([0.1, 0.0], abs=1e-5)


@pytest.mark.parametrize("size", [(64, 48), (96, 72)])
def test_a_fresh_spline_leaves_the_garment_where_it_is(size):
    network, batch = small(), random_batch(2, size)
    points = network.tps(batch.garment, network.person(batch.agnostic, batch.keypoints))
    torch.testing.assert_close(points, lattice(5).expand(2, -1, -1), atol=1e-6, rtol=0)
    grid = network.tps.grid(points, size)
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in size), indexing="ij")
    tolerance = 1e-5 if size == (64, 48) else 0.02  # enlarged grids end half a low pixel inside
    torch.testing.assert_close(grid[0], torch.stack([x, y], -1), atol=tolerance, rtol=0)
    worn = network.coarse(batch.garment, batch.garment_mask, points)
    assert (worn.garment - batch.garment).abs().mean() < 0.03


def test_correlation_equals_a_loop_over_places():
    """Channels count the garment's places column by column; features are of unit length."""
    garment, person = torch.randn(2, 5, 3, 2), torch.randn(2, 5, 3, 2)
    found = correlation(garment, person)
    assert found.shape == (2, 6, 3, 2)
    for x in range(2):
        for y in range(3):
            expected = F.cosine_similarity(garment[:, :, y, x, None, None], person, dim=1)
            torch.testing.assert_close(found[:, x * 3 + y], expected, atol=1e-5, rtol=0)


def test_full_size_shapes_are_the_published_ones():
    with torch.device("meta"):
        tps = TpsWarp(TpsConfig())
        features = tps.garment_features(torch.zeros(1, 3, 256, 192))
        refinement = Refinement(24, 3, (64, 128, 256, 512, 512))
        assert refinement(torch.zeros(1, 24, 512, 384)).shape == (1, 3, 512, 384)
    assert features.shape == (1, 512, 16, 12)
    assert tps.person_features[0].weight.shape == (64, 21, 4, 4)
    assert tps.regression.conv[0].weight.shape == (512, 192, 4, 4)
    assert tps.regression.linear.weight.shape == (50, 768)
    assert tuple(tps.spline.evaluation.shape) == (49152, 28)
    joined = [tuple(up[0].weight.shape[:2]) for up in refinement.up]
    assert joined == [(512, 1024), (256, 512), (128, 256), (64, 128)]


def test_it_is_built_without_memory_after_a_pretrained_network(tmp_path):
    """transformers exchanges linspace while it loads, and torch remembers the exchanged one."""
    torch.utils._device._device_constructors.cache_clear()
    clip_image_encoder(ClipConfig(**TOWER)).tower.save_pretrained(tmp_path)
    clip_image_encoder(ClipConfig(pretrained=str(tmp_path)))
    with torch.device("meta"):
        assert TpsWarp(TpsConfig()).spline.evaluation.is_meta
    torch.utils._device._device_constructors.cache_clear()


def test_the_refinement_takes_sizes_that_halve_unevenly():
    assert Refinement(3, 4, (4, 8, 8))(torch.randn(2, 3, 21, 14)).shape == (2, 4, 21, 14)


def test_heat_maps_peak_at_their_joints():
    joints = torch.zeros(1, 18, 3)
    joints[0, 4] = torch.tensor([0.25, 0.5, 1.0])
    joints[0, 5] = torch.tensor([0.25, 0.5, 0.0])
    maps = heat_maps(joints, (64, 48), sigma=16.0)  # 2 px here
    assert maps.shape == (1, 18, 64, 48)
    assert maps[0, 4, 32, 12] == 1 and maps[0, 4, 32, 14] == pytest.approx(torch.e**-1, abs=1e-6)
    assert maps[0, 4].argmax() == 32 * 48 + 12 and maps[0, 5].max() == 0


@pytest.mark.parametrize("correction", [False, True])
def test_the_answer_is_on_white_inside_the_agnostic_mask(correction):
    network, batch = randomised(small(correction)), random_batch(2)
    coarse = wear(network, batch)
    network.refined.fill_(True)
    for worn in (coarse, wear(network, batch)):
        assert ((worn.silhouette == 0) | (worn.silhouette == 1)).all() and worn.silhouette.any()
        assert (worn.silhouette <= batch.agnostic_mask).all()
        assert (worn.garment[(worn.silhouette == 0).expand_as(worn.garment)] == 1).all()
        assert worn.garment.abs().max() <= 1
    assert not torch.equal(coarse.garment, worn.garment)
    alone = wear(network, batch[1:])  # rows do not see each other
    torch.testing.assert_close(alone.garment, worn.garment[1:], atol=1e-5, rtol=0)


def test_a_fresh_correction_changes_cloth_at_its_rim_alone():
    """There the white behind the garment has mixed in; its own colours are continued instead."""
    network, batch = small(correction=True), random_batch(2)
    batch.garment_mask = batch.warped_mask
    batch.garment = torch.where(batch.garment_mask > 0, -0.5, WHITE).expand_as(batch.garment)
    before = wear(network, batch)
    network.refined.fill_(True)
    after = wear(network, batch)
    assert torch.equal(after.silhouette, before.silhouette) and after.silhouette.any()
    cloth = after.silhouette.expand_as(after.garment) > 0
    assert before.garment[cloth].max() > -0.4 and after.garment[cloth].max() < -0.49


def reference_order(points):
    """The constraint as LaDI-VTON states it, point by point, for one sample of 5x5 points."""
    at = points.view(5, 5, 2)
    total = 0.0
    for transposed in (False, True):
        uneven, bent = [], 0.0
        for i in range(5):
            line = at[:, i] if transposed else at[i]
            for a, b, c in (line[k : k + 3] for k in range(3)):
                first, second = b - a, c - b
                uneven.append((second**2 - first**2).abs().clamp(min=UNEVEN))
                bent += abs((b[1] - a[1]) * (b[0] - c[0]) - (b[1] - c[1]) * (b[0] - a[0]))
        total += torch.stack(uneven).mean(0).sum() + max(bent, torch.tensor(BENT))
    return total


def test_the_constraint_equals_its_definition_and_counts_every_sample():
    points = lattice(5) + 0.3 * torch.randn(3, 25, 2, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([reference_order(one) for one in points])
    torch.testing.assert_close(order_loss(points), expected.mean())
    assert order_loss(lattice(5)[None]) == pytest.approx(4 * UNEVEN + 2 * BENT)
    points.requires_grad_()
    order_loss(points).backward()
    moved = points.grad.flatten(1).abs().sum(1)
    assert (moved > 0).all()  # the released code forgets all but the first
