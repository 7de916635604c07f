import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from vton.errors import UserError
from vton.metrics.results import Row
from vton.report.tables import grouped, print_table, table_json, table_markdown


def row(model, ssim=0.5, kid=0.0123, **changes):
    details = {
        "pairs_sha256": "p",
        "metrics": {"protocol": {"version": 1}, "networks": {"inception": "random"}},
    }
    metrics = {"kid_random": kid, "ssim": ssim, "psnr": 20.0}
    return replace(
        Row(model, "synthetic", "test", "paired", "garment", "all", "exact", 8, metrics, details),
        **changes,
    )


def printed(rows, width=80):
    console = Console(file=io.StringIO(), width=width)
    print_table(rows, console)
    return console.file.getvalue()


def test_models_then_controls_then_baselines_with_the_best_marked():
    rows = [
        row("baseline/mean_colour", 0.7),
        row("gardiff[shuffled]", 0.99),
        row("gardiff", 0.9),
        row("idm_vton", 0.8),
    ]
    lines = [line for line in printed(rows).splitlines() if "0." in line]
    assert [line.split()[0] for line in lines] == [
        "gardiff",
        "idm_vton",
        "gardiff[shuffled]",
        "baseline/mean_colour",
    ]
    markdown = table_markdown(rows)
    assert "**0.9000**" in markdown  # best method
    assert "**0.9900**" not in markdown  # the control does not compete
    assert json.loads(table_json(rows))[0]["model"] == "gardiff"


def test_columns_are_ordered_scaled_and_random_names_explained():
    text = table_markdown([row("gardiff")])
    assert "| model | ssim ↑ | psnr ↑ | kid_random x1000 ↓ |" in text
    assert "12.30" in text  # 0.0123 times 1000
    assert "fixed random weights" in text
    assert "they are not KID" in text
    pretrained = row("gardiff", metrics={"ssim": 0.5, "fid": 9.0})
    assert "random weights" not in table_markdown([pretrained])
    assert "fixed random weights" in printed([row("gardiff")])


def test_title_says_data_order_region_n_and_protocol():
    assert "synthetic test, paired, garment: n = 8, protocol exact v1\n" in printed(
        [row("gardiff")]
    )
    changed = row(
        "gardiff", provenance=details(changes=["size=(64, 48)", "repaint=True"]) | {"mask": "hull"}
    )
    assert "protocol exact v1 with size=(64, 48), repaint=True, mask hull" in table_markdown(
        [changed]
    )


def test_groups_are_separate_and_a_lone_category_is_not_repeated():
    rows = [
        row("gardiff", order=order, region=region, category=category)
        for order in ("unpaired", "paired")
        for region in ("image", "garment")
        for category in ("upper_body", "all")
    ]
    assert list(grouped(rows)) == [
        ("paired", "garment", "all"),
        ("paired", "image", "all"),
        ("unpaired", "garment", "all"),
        ("unpaired", "image", "all"),
    ]
    two = [
        row("gardiff"),
        row("gardiff", category="dresses", n=3),
        row("gardiff", category="upper_body", n=5),
    ]
    assert [key[2] for key in grouped(two)] == ["all", "dresses", "upper_body"]
    # As many pairs, but another reference: persons of other categories are in that of all.
    other = [row("gardiff"), row("gardiff", category="dresses", kid=0.02)]
    assert [key[2] for key in grouped(other)] == ["all", "dresses"]


@pytest.mark.parametrize("width", [60, 80, 120, 300])
def test_a_table_fits_the_console_and_cuts_nothing_off(width):
    """Metrics that do not fit follow in further blocks, which name the models again."""
    names = ["ssim", "psnr", "lpips_random", "dists_random", "fid_random", "kid_random", "cami_u"]
    metrics = dict.fromkeys(names, 0.5)
    spread = details() | {"spread": dict.fromkeys(names, 0.001)}
    rows = [
        row("tryondiffusion/sr256[from_truth]", metrics=metrics, provenance=spread),
        row("baseline/geometric_warp", metrics=metrics),
    ]
    text = printed(rows, width)
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    for name in names:
        assert text.count(f" {name} ") == 1
    assert text.count("500.00 ± 1.00") == 1  # KID times 1000
    blocks = text.count("baseline/geometric_warp")
    assert blocks == text.count("tryondiffusion/sr256[from_truth]")
    assert (blocks == 1) == (width == 300)


def test_a_metric_that_one_method_lacks_is_a_dash():
    text = table_markdown([row("gardiff"), row("idm_vton", metrics={"ssim": 0.4})])
    assert "| idm_vton | 0.4000 | - | - |" in text


def details(**metrics):
    return {
        "pairs_sha256": "p",
        "metrics": {"protocol": {"version": 1}, "networks": {"inception": "random"}} | metrics,
    }


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"data": "viton_hd"}, "data is synthetic and viton_hd"),
        ({"split": "train"}, "split"),
        ({"protocol": "ladi_compat"}, "protocol is exact and ladi_compat"),
        ({"provenance": details(protocol={"version": 2})}, "protocol version is 1 and 2"),
        ({"provenance": details(changes=["repaint=True"])}, "protocol settings changed"),
        ({"provenance": details(networks={"inception": "other"})}, "metric networks"),
        ({"provenance": details() | {"pairs_sha256": "q"}}, "pairs is p and q"),
        ({"n": 7}, "n is 8 and 7"),
        (
            {"provenance": details() | {"targets": {"n": 11, "sha256": "0123456789"}}},
            "reference is None and 11 pictures 01234567",
        ),
    ],
)
@pytest.mark.parametrize("make", [print_table, table_markdown, table_json])
def test_rows_measured_differently_do_not_share_a_table(changes, word, make):
    with pytest.raises(UserError, match=rf"gardiff and idm_vton .*cannot share a table.*{word}"):
        make([row("gardiff"), row("idm_vton", **changes)])


def test_other_masks_do_not_share_a_table():
    """They decide what is painted. Of pictures from elsewhere nobody may know them."""
    hull, box = (row(name, provenance=details() | {"mask": name}) for name in ("hull", "box"))
    with pytest.raises(UserError, match="measured differently: mask is hull and box"):
        table_markdown([hull, box])
    assert "mask hull" in table_markdown([row("elsewhere"), hull])


def test_a_control_of_fewer_pairs_shares_the_table_and_says_so():
    fewer = {"n": 3, "provenance": details() | {"pairs_sha256": "q"}}
    rows = [row("gardiff"), row("gardiff[shuffled]", **fewer), row("baseline/mean_colour")]
    text = printed(rows, 80)
    assert "gardiff[shuffled]" in text
    note = "gardiff[shuffled] (paired) covers 3 of the 8 pairs, so its FID and KID do not compare"
    assert note in " ".join(text.split())
    with pytest.raises(UserError, match=r"cannot share a table, other pairs"):
        table_markdown([*rows, row("idm_vton[shuffled]")])


def test_a_control_is_counted_against_its_own_region():
    """Pairs whose truth does not show the garment count in the image alone."""
    rows = []
    for region, n in (("image", 8), ("garment", 7)):
        rows += [row("gardiff", region=region, n=n), row("gardiff[shuffled]", region=region, n=n)]
    assert "pairs" not in printed(rows)


def test_values_that_print_alike_are_best_together():
    rows = [row("gardiff", 0.90001), row("idm_vton", 0.90003), row("leffa", 0.8999)]
    text = table_markdown(rows)
    assert text.count("**0.9000**") == 2 and "| 0.8999 |" in text


def test_what_is_absent_somewhere_says_where():
    few = row(
        "gardiff",
        category="dresses",
        n=1,
        metrics={"ssim": 0.5},
        provenance=details() | {"absent": {"kid_random": "it needs two pictures"}},
    )
    text = table_markdown([row("gardiff"), few])
    assert "kid_random of gardiff (paired, garment, dresses) is absent: it needs two" in text
    everywhere = row("gardiff", provenance=details() | {"absent": {"cami_u": "needs a parser"}})
    assert "cami_u is absent: needs a parser." in table_markdown([everywhere])


def test_a_metric_that_no_table_knows_is_named():
    """Neither its digits are known, nor which way it is better."""
    with pytest.raises(UserError, match=r"gardiff \(paired, garment\): no table knows .* vmaf"):
        table_markdown([row("gardiff", metrics={"vmaf": 90.0})])
