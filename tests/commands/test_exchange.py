"""Published weights in, pictures and the same bytes out, through the real command."""

import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.data.folders import write_viton_hd
from tests.models.hub_folders import as_published
from vton.cli import main
from vton.commands.exchange import checkpoint_code
from vton.config import load
from vton.errors import UserError
from vton.runs.folder import RunFolder


def vton(*arguments, capsys) -> tuple[int, str]:
    """Exit code and error line."""
    with pytest.raises(SystemExit) as done:
        main([str(argument) for argument in arguments])
    return done.value.code, capsys.readouterr().err


def test_import_evaluate_export(published_idm_vton, tmp_path, capsys):
    """The recipe of docs/weights.md, on a folder as the authors' is, float16 everywhere, and on one
    of VITON-HD.
    """
    recipe = (
        "vton import idm_vton DIR  # the published folder\n"
        "make eval RUN=runs/idm_vton-DIR DATA=viton_hd  # on all GPUs that there are"
    )
    page = Path(__file__).parents[2] / "docs/weights.md"
    assert recipe in re.sub(" +#", "  #", page.read_text())
    folder, run, out = tmp_path / "DIR", tmp_path / "runs" / "idm_vton-DIR", tmp_path / "exported"
    shutil.copytree(published_idm_vton[0], folder)
    as_published(folder)
    pairs = write_viton_hd(tmp_path / "viton_hd", train=2, test=2)
    few = (
        "sampler.steps=2",
        "eval.metrics=[ssim]",
        "eval.orders=[paired]",
        "eval.shuffled=false",
        "data.workers=0",
    )
    here = f"runs={tmp_path / 'runs'}"
    small = ("data.size=[64,48]", *few, here)
    with RunFolder(run).training_lock():
        code, error = vton("import", "idm_vton", folder, *small, capsys=capsys)
        assert code == 2 and f"Another process is training in {run}, or prepares to." in error
    assert vton("import", "idm_vton", folder, *small, capsys=capsys) == (0, "")
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert stored["trainer"] == {} and "precision" not in stored["train"]  # no machine's
    assert RunFolder(run).load_config().trainer == load().trainer
    assert stored["data"]["person_caption"] == "model is wearing a {}"
    viton_hd = ("data=viton_hd", f"data.root={pairs}")
    for more in ([], ["eval.precision=bf16"]):
        code, said = vton("eval", "--run", run, *viton_hd, *more, capsys=capsys)
        assert code == 0 and said.startswith("trainer=auto: no CUDA device, CPU\n")
    assert len(list((run / "predictions" / "paired").glob("*.png"))) == 2
    assert vton("export", "--run", run, "--out", out, capsys=capsys) == (0, "")
    before, after = (
        load_file(f / "unet" / "diffusion_pytorch_model.safetensors") for f in (folder, out)
    )
    assert before.keys() == after.keys() and all(
        torch.equal(before[name], after[name]) for name in before
    )

    code, error = vton("import", "idm_vton", folder, here, capsys=capsys)
    assert code == 2 and "holds weights already" in error
    code, error = vton("export", "--run", run, "--out", out, capsys=capsys)
    assert code == 2 and "exists; export to a new place" in error


def test_what_cannot_be_imported_is_one_line(published_idm_vton, tmp_path, capsys):
    save_file({"ref_unet.conv_in.weight": torch.zeros(2)}, tmp_path / "dressing.safetensors")
    cases = [
        (("gardiff", published_idm_vton[0]), "No checkpoint at"),
        (("gardiff", tmp_path / "dressing.safetensors"), "not GarDiff's UNet"),
        (("idm_vtn", published_idm_vton[0]), "Did you mean: 'idm_vton'?"),
        (("idm_vton", tmp_path / "absent"), "Nothing to import at"),
        (
            ("idm_vton", tmp_path / "dressing.safetensors"),
            "IDM-VTON is published as a diffusers folder",
        ),
        (("imagdressing", published_idm_vton[0]), "is published as one file"),
        (("imagdressing", tmp_path / "dressing.safetensors"), "not an IMAGDressing-v1 checkpoint"),
    ]
    for arguments, message in cases:
        code, error = vton("import", *arguments, f"runs={tmp_path / 'runs'}", capsys=capsys)
        assert code == 2 and message in error and len(error.splitlines()) == 1, arguments
    assert not (tmp_path / "runs").exists()


def test_a_position_code_cannot_be_exported(tmp_path, capsys):
    config = load("model=idm_vton", "preset=tiny", f"runs={tmp_path}", "name=scratch")
    run = RunFolder.of(config)
    run.start(config)
    save_file({"x": torch.zeros(1)}, run.weights)
    code, error = vton("export", "--run", run.path, "--out", tmp_path / "out", capsys=capsys)
    assert code == 2 and "model.unet.positions=2.5" in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_newest_run_is_exported_from_where_runs_says(tmp_path, capsys):
    config = load("model=idm_vton", "preset=tiny", f"runs={tmp_path}/mine", "name=scratch")
    run = RunFolder.of(config)
    run.start(config)
    save_file({"x": torch.zeros(1)}, run.weights)
    out = ("--out", tmp_path / "out")
    code, error = vton("export", *out, f"runs={tmp_path}/mine", capsys=capsys)
    assert code == 2 and str(run.path) in error and "position code" in error
    code, error = vton("export", *out, f"runs={tmp_path}/theirs", capsys=capsys)
    assert code == 2 and f"No trained run under {tmp_path}/theirs/" in error
    code, error = vton("export", *out, "data=viton_hd", capsys=capsys)
    assert code == 2 and "data=viton_hd: export takes runs=DIR only" in error


def test_an_architecture_without_a_published_format_says_so():
    with pytest.raises(UserError, match="gardiff has no published format"):
        checkpoint_code("gardiff", "a_function_that_it_lacks")
