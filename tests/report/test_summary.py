"""The table of a comparison, from rows written by hand."""

import csv
import io
import shutil
import statistics
from dataclasses import replace

import pytest
import torch

from vton.cli import main
from vton.errors import UserError
from vton.metrics import resampling
from vton.metrics.results import Row, write_results
from vton.report.measured import RESULTS
from vton.report.summary import (
    comma_separated,
    comparison_table,
    latex,
    markdown,
    over_seeds,
    write_tables,
)


def row(model="gardiff", seed=0, psnr=18.0, order="paired", **facts):
    """A row as a comparison leaves it; of a baseline where the model's name says so."""
    settings = {"protocol": {"version": 1}, "networks": {"inception": "random"}}
    provenance = {
        "size": [128, 96],
        "mask": "folder:agnostic-mask",
        "warp": "geometric",
        "commit": "0123456789abcdef",
        "pairs_sha256": "p",
        "metrics": settings,
    }
    if not model.startswith("baseline/"):
        provenance |= {
            "solver": "ddim",
            "steps": 1,
            "guidance": 1.0,
            "seconds_per_picture": 0.04,
            "training": {
                "seed": seed,
                "batch_size": 8,
                "accumulate": 1,
                "lr": 1e-3,
                "warmup_steps": 100,
                "schedule": "cosine",
                "precision": "fp32",
                "timestep_power": 16.0,
                "steps": 900,
                "seconds": 300.0,
                "peak_memory_gib": 1.5,
            },
            "comparison": {
                "name": "c",
                "ablation": "",
                "budget": {"kind": "steps", "amount": 900},
                "changes": [],
            },
            "cost": {
                "parameters": 6_000_000,
                "picture_flops": 2e9,
                "step_flops": 5e10,
                "sampling_bytes": 2**24,
            },
        }
    metrics = {"psnr": psnr, "fid_random": 100 / psnr}
    found = Row(
        model, "synthetic", "test", order, "garment", "all", "exact", 200, metrics, provenance
    )
    return replace(found, provenance=provenance | facts)


ROWS = [
    row(seed=0, psnr=18.0),
    row(seed=1, psnr=19.0),
    row("idm_vton", psnr=20.0),
    row("gardiff[shuffled]", psnr=30.0),
    row("baseline/mean_colour", psnr=17.0),
    row(order="unpaired", psnr=16.0),
    row(order="unpaired", seed=1, psnr=16.5),
]


def test_seeds_are_averaged_with_their_sample_standard_deviation():
    gardiff, idm_vton, *_ = over_seeds(ROWS)
    assert gardiff.metrics["psnr"] == 18.5 and gardiff.provenance["seeds"] == [0, 1]
    assert gardiff.provenance["spread"]["psnr"] == pytest.approx(statistics.stdev([18, 19]))
    assert "spread" not in idm_vton.provenance


def test_quality_of_both_orders_and_cost_stand_in_one_table():
    methods, columns = comparison_table(over_seeds(ROWS))
    assert methods == ["gardiff", "idm_vton", "gardiff[shuffled]", "baseline/mean_colour"]
    cells = {(column.group, column.heading): column for column in columns}
    psnr = cells["paired, garment", "psnr ↑"]
    assert psnr.cells["gardiff"] == "18.50 ± 0.71" and psnr.cells["idm_vton"] == "20.00"
    assert psnr.best == {"idm_vton"}  # the control does not compete
    assert cells["unpaired, garment", "psnr ↑"].cells == {"gardiff": "16.25 ± 0.35"}
    cost = {column.heading: column.cells for column in columns if column.group == "cost"}
    # Neither control nor baseline.
    assert cost["M parameters"] == {"gardiff": "6.00", "idm_vton": "6.00"}
    assert cost["train TFLOP"]["gardiff"] == "45.0" and cost["GFLOP / image"]["gardiff"] == "2.00"
    assert cost["s / image"]["gardiff"] == "0.040" and cost["sampling MiB"]["gardiff"] == "16.0"
    assert cost["train min"]["gardiff"] == "5.0" and cost["train GiB"]["gardiff"] == "1.50"


def test_markdown_says_what_was_equal():
    later = row(order="unpaired", seed=1, psnr=16.5, commit="fedcba9876543210")
    text = markdown(over_seeds([*ROWS[:-1], later]))
    head = text.splitlines()[0]
    assert head.startswith("| method | paired, garment<br>psnr ↑ | ")
    assert "cost<br>train TFLOP" in head
    assert "| idm_vton | **20.00** | **5.00** | - | - | 6.00 |" in text
    assert "Budget: 900 optimizer steps" in text and "batches of 8 (x 1) in fp32" in text
    shared = row()
    shared.provenance["training"]["global_batch"] = 32
    assert "of 8 (x 1) on each of 4 processes in fp32" in markdown(over_seeds([shared]))
    assert "Training seeds: 0 and 1 (gardiff), 0 (idm_vton), 0 (gardiff[shuffled])." in text
    assert "sample standard deviation" in text and "Commits: 0123456789ab, fedcba987654." in text
    assert text.count("fixed random weights") == 1 and "## Every metric" in text


def test_an_unfinished_comparison_names_the_runs_that_are_missing():
    facts = row().provenance["comparison"]
    missing = ["idm_vton, seed 0", "leffa, seed 0"]
    unfinished = row(comparison=facts | {"missing": missing})
    assert "- Not run yet: idm_vton, seed 0; leffa, seed 0.\n" in markdown(over_seeds([unfinished]))
    assert "Not run yet" not in markdown(over_seeds([row()]))


def test_an_ablation_names_what_each_row_changes():
    changed = ROWS[0].provenance["comparison"] | {"changes": ["model.adapter=false"]}
    assert "- base: model.adapter=false." in markdown(over_seeds([row("base", comparison=changed)]))


def test_latex_is_escaped_and_braces_match():
    text = latex(over_seeds(ROWS))
    assert (
        r"idm\_vton & \textbf{20.00}" in text
        and r"18.50 $\pm$ 0.71" in text
        and r"psnr $\uparrow$" in text
    )
    assert (
        r"\multicolumn{2}{c}{paired, garment}" in text
        and r"\cmidrule(lr){2-3}\cmidrule(lr){4-5}" in text
    )
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    assert {line.count("&") for line in body.splitlines() if "&" in line} == {12}
    assert not set("_%#") & set(body.replace(r"\_", "").replace(r"\%", ""))


def test_csv_holds_plain_numbers():
    lines = list(csv.DictReader(io.StringIO(comma_separated(over_seeds(ROWS)))))
    assert len(lines) == 5
    first = lines[0]
    assert (first["model"], first["order"], first["seeds"], float(first["psnr"])) == (
        "gardiff",
        "paired",
        "2",
        18.5,
    )
    assert float(first["psnr_std"]) == pytest.approx(statistics.stdev([18, 19]))
    assert float(first["training_flops"]) == 4.5e13 and float(first["picture_flops"]) == 2e9
    assert next(line for line in lines if line["model"].startswith("baseline/"))["parameters"] == ""


def test_other_budgets_sizes_and_protocols_do_not_mix():
    other = {"name": "c", "budget": {"kind": "flops", "amount": 40.0}, "changes": []}
    for changed, word in (
        (
            row("idm_vton", comparison=other),
            "budget is {'kind': 'steps', 'amount': 900} and {'kind': 'flops'",
        ),
        (row("idm_vton", size=[256, 192]), "size"),
        (replace(row("idm_vton"), protocol="ladi_compat"), "protocol is exact and ladi_compat"),
        (replace(row("idm_vton"), data="viton_hd"), "data is synthetic and viton_hd"),
    ):
        with pytest.raises(UserError, match="cannot share a table") as error:
            over_seeds([row("baseline/pasted_garment"), row(), changed])
        assert word in str(error.value) and "\n" not in str(error.value)


def test_one_seed_counts_once():
    with pytest.raises(UserError, match="several rows of one seed"):
        over_seeds([row(), row()])


def test_a_metric_that_one_seed_lacks_is_named():
    reason = "it needs two pictures on each side, here are 1 and 1"
    other = row(seed=1, absent={"fid_random": reason}, left_out={"psnr": {"a": "thin"}})
    del other.metrics["fid_random"]
    other.metrics["ssim"] = 0.5
    (mean,) = over_seeds([row(seed=0), other])
    assert set(mean.metrics) == {"psnr"}
    text = markdown([mean])
    assert f"fid_random is absent: seed 1: {reason}." in text
    assert "ssim is absent: seed 0: it was not measured." in text
    assert "psnr of gardiff (paired) is the mean over 199 of 200 pairs" in text
    both = [row(seed=seed, absent={"cami_u": "needs a parser"}) for seed in (0, 1)]
    assert over_seeds(both)[0].provenance["absent"] == {"cami_u": "needs a parser"}


@pytest.mark.parametrize(
    ("facts", "difference"),
    [
        ({"guidance": 7.5}, "guidance is 1.0 and 7.5"),
        ({"checkpoint": "best"}, "checkpoint is weights and best"),
        ({"training": {"steps": 500}}, "training.steps is 900 and 500"),
        ({"cost": {"parameters": 7}}, "parameters is 6000000 and 7"),
        ({"settings_sha256": "b"}, "a setting that rows do not name, see the config.yaml"),
    ],
)
def test_only_seeds_of_one_setting_are_averaged(facts, difference):
    common = {"checkpoint": "weights", "settings_sha256": "a"}
    first, second = row(**common), row(seed=1, **common)
    second.provenance["training"] |= {"seconds": 1.0, "global_batch": 8}  # no settings of the first
    over_seeds([first, second])
    training = second.provenance["training"] | facts.get("training", {})
    changed = replace(second, provenance=second.provenance | facts | {"training": training})
    with pytest.raises(UserError, match=r"gardiff .*differ in more than the") as error:
        over_seeds([first, changed])
    assert difference in str(error.value)


def test_seeds_of_runs_without_a_comparison_are_named_too():
    rows = [row(seed=0), row(seed=1)]
    for each in rows:
        del each.provenance["comparison"]
    text = markdown(over_seeds(rows))
    assert "- Training seeds: 0 and 1." in text
    assert "± is the sample standard deviation" in text


def test_tables_are_drawn_from_the_folder_alone(tmp_path):
    with pytest.raises(UserError, match=r"no results\.json"):
        write_tables(tmp_path)
    write_results(tmp_path / "results.json", [])
    with pytest.raises(UserError, match=r"results\.json holds no rows"):
        write_tables(tmp_path)
    foreign = replace(row(), provenance={})
    write_results(tmp_path / "results.json", [foreign])
    with pytest.raises(UserError, match=r"results\.json: no table .* for want of 'size'"):
        write_tables(tmp_path)
    damaged = row(deviations={"psnr": "0.1 0.2 x"})
    write_results(tmp_path / "results.json", [damaged])
    with pytest.raises(UserError, match=r"'0\.1 0\.2 x' instead of numbers"):
        write_tables(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    write_results(tmp_path / "results.json", ROWS)
    write_tables(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "results.json",
        "table.md",
        "table.csv",
        "table.tex",
    }


@pytest.mark.parametrize("name", sorted(table.parent.name for table in RESULTS.glob("*/table.md")))
def test_committed_tables_are_drawn_as_today(name, tmp_path):
    """Whoever changes how tables are drawn runs `vton table results`."""
    shutil.copy(RESULTS / name / "results.json", tmp_path)
    write_tables(tmp_path)
    for suffix in ("md", "csv", "tex"):
        drawn = (tmp_path / f"table.{suffix}").read_text()
        assert drawn == (RESULTS / name / f"table.{suffix}").read_text(), suffix


def with_deviations(found, values):
    """The row with what resampling says of a mean of these scores."""
    deviations = resampling.deviations_of_means(values)
    found.metrics["psnr"] = values.mean().item()
    found.provenance["deviations"] = {"psnr": resampling.as_text(deviations)}
    found.provenance["intervals"] = {"psnr": resampling.interval(values.mean().item(), deviations)}
    return found


def test_the_command_says_which_differences_are_noise(tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 200, dtype=torch.float64, generator=generator)
    rows = [
        with_deviations(row("gardiff"), 18 + noise[0]),
        with_deviations(row("idm_vton"), 18.01 + noise[1]),
        with_deviations(row("baseline/mean_colour"), 12 + noise[2]),
    ]
    write_results(tmp_path / "results.json", rows)
    with pytest.raises(SystemExit) as done:
        main(["table", str(tmp_path)])
    printed = " ".join(capsys.readouterr().out.split())
    assert not done.value.code
    sentence = "paired, garment, psnr: within noise (95 %) are gardiff and idm_vton ("
    assert sentence in printed and "All other differences are larger." in printed
    text = (tmp_path / "table.md").read_text()
    assert "## Differences and noise" in text and f"- {sentence}" in text and "[" not in text
    with pytest.raises(SystemExit):
        main(["table", str(tmp_path), "--intervals"])
    low, high = rows[0].provenance["intervals"]["psnr"]
    first = next(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert float(first["psnr_low"]) == pytest.approx(low, abs=1e-3)
    assert float(first["psnr_high"]) == pytest.approx(high, abs=1e-3)
    shown = f"[{low:.2f}, {high:.2f}]"
    assert shown in capsys.readouterr().out and shown in (tmp_path / "table.md").read_text()


def test_tables_of_rows_without_deviations_are_as_they_were(tmp_path):
    write_results(tmp_path / "results.json", [row("gardiff"), row("idm_vton")])
    write_tables(tmp_path)
    assert "## Differences and noise" not in (tmp_path / "table.md").read_text()
    assert "_low" not in (tmp_path / "table.csv").read_text()
