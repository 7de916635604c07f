import pytest
import yaml

from vton.config import CONFIGS, nearest
from vton.errors import UserError
from vton.report.columns import DIGITS, base
from vton.report.published import read_published
from vton.report.published_file import PUBLISHED


@pytest.fixture(scope="module")
def published():
    return read_published()


def test_totals(published):
    kinds = published.values.groupby("kind").size().to_dict()
    assert kinds == {"comparison": 507, "requoted": 461, "ablation": 154, "user_study": 26}
    assert published.values["name"].nunique() == 55
    assert published.values["mark"].value_counts().to_dict() == {
        "stated": 1005,
        "recalled": 68,
        "inferred": 30,
        "second_hand": 39,
        "misprint": 6,
    }
    assert published.models == [
        "gardiff",
        "idm_vton",
        "imagdressing",
        "tryondiffusion",
        "ladi_vton",
        "leffa",
        "catvton",
        "stableviton",
    ]


def test_every_value_has_source_table_and_protocol_and_stands_once(published):
    values = published.values
    for column in ("source", "table", "protocol", "data", "order", "metric", "mark"):
        assert values[column].str.len().min() > 0
    assert not values.duplicated(["name", "order", "metric", "row"]).any()
    assert not values.duplicated(
        ["paper", "table", "data", "category", "protocol", "order", "metric", "row"]
    ).any()


@pytest.mark.parametrize(
    ("name", "row", "order", "metric", "printed", "value", "mark"),
    [
        ("gardiff/viton_hd", "GarDiff", "unpaired", "fid", "7.89", 7.89, "stated"),
        # x100, as the next.
        ("gardiff/viton_hd", "VITON-HD", "unpaired", "kid", "0.300", 0.003, "stated"),
        ("gardiff/dresscode/lower_body", "GarDiff", "paired", "kid", "0.090", 9e-4, "stated"),
        # Read as x1000.
        ("gardiff/dresscode/lower_body", "GarDiff", "unpaired", "kid", "2.88", 0.00288, "inferred"),
        ("gardiff/ablation", "base+GFA", "paired", "ssim", "0.898", 0.898, "stated"),
        ("catvton/dresscode", "CatVTON", "unpaired", "kid", "1.403", 0.001403, "stated"),
        ("catvton/ablation/dream", "dream_0", "paired", "fid", "10.4534", 10.4534, "stated"),
        ("deco_vton/ablation", "deco", "paired", "kid", "0.010", 1e-5, "second_hand"),
        ("leffa/ablation", "loss_per_head", "paired", "kid", "0.74", 0.00074, "stated"),
        ("leffa/viton_hd", "Leffa", "unpaired", "fid", "8.52", 8.52, "stated"),
        ("ladi_vton/viton_hd", "LaDI-VTON", "unpaired", "kid", "1.60", 0.0016, "recalled"),
        ("ladi_vton/dresscode", "LaDI-VTON", "paired", "fid", "4.14", 4.14, "second_hand"),
        ("idm_vton/viton_hd", "IDM-VTON", "unstated", "fid", "6.29", 6.29, "second_hand"),
        ("idm_vton/viton_hd", "GP-VTON", "paired", "clip_i", "0.874", 0.874, "recalled"),
        ("imagdressing/ablation", "A1", "generated", "image_reward", "-0.178", -0.178, "stated"),
        (
            "tryondiffusion/ablation/viton_hd",
            "warp_then_blend",
            "unpaired",
            "kid",
            "17.339",
            0.017339,
            "stated",
        ),
        (
            "tryondiffusion/training_pairs/viton_hd",
            "pairs_300",
            "unpaired",
            "kid",
            "10.732",
            0.010732,
            "stated",
        ),
        ("fia_vton/viton_hd", "IDM-VTON", "unpaired", "fid", "8.64", 8.64, "misprint"),
        (
            "spm_diff/dresscode/dresses",
            "IDM-VTON on SDXL",
            "paired",
            "lpips",
            "0.060",
            0.060,
            "stated",
        ),
    ],
)
def test_spot_values(published, name, row, order, metric, printed, value, mark):
    cell = published.of_table(name).query("row == @row and order == @order and metric == @metric")
    assert cell[["printed", "mark"]].values.tolist() == [[printed, mark]]
    assert cell["value"].item() == pytest.approx(value, rel=1e-12)


def test_kid_of_one_method_is_on_one_scale_whatever_the_paper_prints(published):
    kid = published.values.query("metric == 'kid' and row == 'LaDI-VTON' and data == 'viton_hd'")
    assert set(kid["scale"]) == {100, 1000}
    assert kid["value"].between(0.001, 0.009).all()


def test_papers_about_idm_vton_are_as_far_apart_as_its_reviewers_say(published):
    """A survey of these papers: SSIM .816-.916, paired FID 5.76-8.21, unpaired 7.03-10.75."""
    values = published.values.query(
        "model == 'idm_vton' and data == 'viton_hd' and mark != 'misprint'"
    )
    ranges = values.groupby(["order", "metric"])["value"].agg(["min", "max"])
    assert ranges.loc[("paired", "ssim")].tolist() == pytest.approx([0.816, 0.916], abs=6e-4)
    assert ranges.loc[("paired", "fid")].tolist() == pytest.approx([5.76, 8.21], abs=6e-3)
    assert ranges.loc[("unpaired", "fid")].tolist() == pytest.approx([7.03, 10.75], abs=6e-3)


def test_metrics_and_their_directions_are_ours_and_the_papers(published):
    assert published.better.keys() > DIGITS.keys()
    higher = ["ssim", "psnr_random", "iou", "cami_u_true_mask", "image_reward"]
    higher += ["clip_i", "preferred_pose"]
    for metric in higher:
        assert published.towards(metric) == 1
    for metric in ("lpips_squeeze_random", "dists", "fid", "kid_random"):
        assert published.towards(metric) == -1
    for metric, stem in [("lpips_random", "lpips"), ("mp_lpips_true_mask", "mp_lpips")]:
        assert published.base(metric) == base(metric) == stem
    assert published.base("kid") == base("kid") == "kid"
    assert published.base("preferred_detail") == "preferred_detail" and base("clip_i") == "clip_i"
    with pytest.raises(UserError, match="metric beauty_random is not in"):
        published.towards("beauty_random")


def test_claims_follow_the_metric_and_leave_misprints_out(published):
    claims = published.claims_of("gardiff").set_index(["row", "than", "order", "metric"])
    assert len(claims) == 6 * 6
    assert (claims["sign"] == 1).all()  # every row of Table 3 beats those above it
    assert claims.loc[("base+AL", "base", "paired", "lpips"), "says"] == "0.117 → 0.090"
    pairs = published.claims_of("tryondiffusion_pairs").set_index(["name", "row", "than", "metric"])
    kid = ("tryondiffusion/training_pairs/viton_hd", "full", "pairs_300", "kid")
    assert pairs.loc[kid, "sign"] == -1  # 100 K pairs have the best KID on VITON-HD
    said = published.claims_of("idm_vton")
    assert said[["row", "than", "order", "metric", "sign"]].values.tolist() == [
        ["full", "without_garment_net", "paired", "*", 1]
    ]
    models = published.claims_between_models()
    fia = models.query("name == 'fia_vton/viton_hd' and row == 'gardiff' and than == 'idm_vton'")
    assert set(fia["metric"]) == {"ssim", "lpips"}  # its unpaired FID of IDM-VTON is a misprint
    assert (models["row"] != models["than"]).all()  # StableVITON's table has it in two rows
    for model in ("gardiff", "catvton"):
        own = models[models["name"] == f"{model}/viton_hd"]
        own = own.query("row == @model and than == 'ladi_vton'")
        assert len(own) == 6 and (own["sign"] == 1).all()


def test_rows_of_ablations_are_rows_of_the_configuration(published):
    """Each file of configs/ablation holds the rows of the studies of its architecture."""
    studies = set(published.values["study"]) | set(published.directions["study"])
    studies.discard("")
    architectures = [
        "catvton",
        "gardiff",
        "idm_vton",
        "imagdressing",
        "ladi_vton",
        "leffa",
        "stableviton",
        "tryondiffusion",
    ]
    assert sorted(studies) == [*architectures, "tryondiffusion_pairs"]
    for study in studies:
        path = CONFIGS / "ablation" / f"{study.removesuffix('_pairs')}.yaml"
        configured = yaml.safe_load(path.read_text())["rows"]
        for row in published.rows_of(study):
            assert row in configured, nearest(row, list(configured))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "GarDiff: [0.912, 0.036, 6.02,",
            "GarDiff: [0.912, 0.036,",
            "GarDiff has 5 values for 6 columns",
        ),
        (
            "GarDiff: [0.912, 0.036, 6.02,",
            "GarDiff: [0.912, 0.036, good,",
            "fid: good is no number",
        ),
        ("GarDiff: [0.912, 0.036, 6.02,", "PF-AFN: [0.912, 0.036, 6.02,", "'PF-AFN'. stands twice"),
        ("unpaired kid x100]", "unpaired kid]", '"unpaired kid" is not'),
        ("[paired ssim,", "[paired beauty,", '"paired beauty" is not'),
        (
            "  clip_i: higher",
            "  clip_i: higher\n  ssim: lower",
            r"metrics \['ssim'\] are ours already",
        ),
        (
            "name: gardiff/viton_hd",
            "name: gardiff/ablation",
            r"name stands twice: \['gardiff/ablation'\]",
        ),
        ("  - name: gardiff/", "  - named: gardiff/", r"'name'"),
        ("kind: comparison", "kind: guess", "kind is guess"),
        ("mark: stated", "mark: sure", "mark sure is not one of"),
        ("    protocol: ", "    note: ", r"lacks \['protocol'\]"),
        (
            "marks: {MV-VTON: {unpaired kid:",
            "marks: {MV-VTON: {unpaired lpips:",
            "MV-VTON, unpaired lpips: no such cell",
        ),
        ("metrics: paired", "metrics: some", "metrics is some"),
        ("systems:", "methods:", r"lacks \['systems'\]"),
        (
            "  CatVTON: catvton",
            "  CatVTON: my_vton",
            r"papers of \['my_vton'\] are not in `papers`",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, old, new, problem):
    text = PUBLISHED.read_text()
    assert old in text
    path = tmp_path / "published.yaml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=problem):
        read_published(path)
