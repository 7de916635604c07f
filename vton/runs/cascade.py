"""Cascades: which runs belong together, and how the pictures of one stage reach the next.

    runs/<name>/            the first stage, a run folder like any other
    runs/<name>/<stage>/    an upper one

Whatever architecture names its stages (ModelConfig.CASCADE) and reads TryOnBatch.lowres in
`condition` is chained here. Pictures are handed over as the PNGs by pair that the former stage has
written: the next one enlarges exactly what the table measures, whichever process drew it. Rounding
to 8 bits moves a value by at most 1/255 in [-1, 1].
"""
# Shapes: B batch, H W height and width of a stage's pictures, n how many times it enlarges

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from vton.config import DataConfig, ExperimentConfig, flatten
from vton.data import transforms
from vton.data.dataset import TryOnDataset
from vton.data.module import TryOnDataModule
from vton.data.sample import DataError, Order, TryOnSample
from vton.metrics.pictures import PictureFolder, to_uint8
from vton.runs.folder import RunError, RunFolder

ALONE = "eval.chain=false evaluates a stage alone, the upper ones on the reduced truth."
# What stages must agree on: the pairs, and which pictures of them there are.
SHARED = (
    "data.name",
    "data.category",
    "data.limit_test",
    "data.synthetic.layout",
    "data.synthetic.train",
    "data.synthetic.test",
    "data.synthetic.seed",
    "eval.orders",
    "eval.shuffled",
)


class Stage(NamedTuple):
    """A run and its settings; a sequence of them is a chain, in the order of sampling."""

    run: RunFolder
    config: ExperimentConfig


def chain_of(run: RunFolder, *overrides: str, whole: bool = False) -> list[Stage]:
    """The run behind the stages below it; overrides act on each.

    A cascade's first stage, or any with `whole`, stands for all trained ones. A run that is no
    cascade's, and any with eval.chain=false, stays alone. Raises RunError for a stage that is
    absent in between or does not fit the former one.
    """
    own = Stage(run, run.load_config(*overrides))
    model = own.config.model
    if not model.CASCADE or not own.config.eval.chain:
        return [own]
    first = RunFolder(run.path.absolute().parent) if model.upper_stage else run
    folders = {
        name: first if times == 1 else RunFolder(first.path / name)
        for name, times in model.CASCADE.items()
    }
    names = list(folders)
    trained = [name for name in names if folders[name].has_checkpoint]
    end = (
        model.stage
        if model.upper_stage and not whole
        else max([model.stage, *trained], key=names.index)
    )
    chain = []
    for name in names[: names.index(end) + 1]:
        if not folders[name].config.exists():
            raise RunError(
                f"{folders[end].path} enlarges pictures of stage {name}, but there is no run in {folders[name].path}. "
                f"Train it (model.stage={name}). {ALONE}"
            )
        stage = Stage(folders[name], folders[name].load_config(*overrides))
        if (stage.config.model.name, getattr(stage.config.model, "stage", "")) != (
            model.name,
            name,
        ):
            raise RunError(f"{stage.run.path} is not stage {name} of {model.name}. {ALONE}")
        chain.append(stage)
    for former, stage in pairwise(chain):
        require_fit(former, stage)
    return chain


def require_fit(former: Stage, stage: Stage) -> None:
    """Raise RunError unless the stage can enlarge the former one's pictures, naming both."""
    both = f"{former.run.path} and {stage.run.path} cannot be chained"
    one, other = (flatten(asdict(part.config)) for part in (former, stage))
    differing = [
        f"{key} is {one[key]} and {other[key]}" for key in SHARED if one[key] != other[key]
    ]
    if differing:
        raise RunError(f"{both}: {'; '.join(differing)}. An override acts on all stages. {ALONE}")
    times, data = factor(stage.config), stage.config.data
    makes, wants = former.config.data.picture_size, smaller(data.picture_size, times)
    if makes != wants or any(
        side % times for side in transforms.margins(data.picture_size, data.size)
    ):
        raise RunError(
            f"{both}: pictures of {list(makes)} are not those of {list(data.picture_size)} reduced {times} times "
            f"(data.size is {list(former.config.data.size)} and {list(data.size)}). {ALONE}"
        )


def require_same_pairs(
    chain: Sequence[Stage], data: Sequence[TryOnDataModule], orders: Iterable[Order]
) -> None:
    """Raise DataError unless all stages have the same test pairs, naming the first two that differ."""
    for order in orders:
        for (former, before), (stage, after) in pairwise(zip(chain, data, strict=True)):
            one, other = (set(module.eval_dataset(order).pair_ids) for module in (before, after))
            if one != other:
                raise DataError(
                    f"{former.run.path} and {stage.run.path} cannot be chained: {before.root} has {len(one)} {order} "
                    f"test pairs, {after.root} {len(other)}, and {min(one ^ other)} is in one only. Use one data set "
                    f"at both sizes. {ALONE}"
                )


def factor(config: ExperimentConfig) -> int:
    """How many times the configured stage enlarges."""
    return config.model.CASCADE[config.model.stage]


def smaller(size: tuple[int, int], times: int) -> tuple[int, int]:
    return size[0] // times, size[1] // times


class WithLowres(Dataset):
    """A test split whose samples bring the smaller picture that the configured stage enlarges.

    Item i is sample i of `pairs` with lowres (3, H / n, W / n) in [-1, 1], padded as the sample is.
    It is read from `folder`, where the stage before has written it. Between stages pictures change
    their range here and nowhere else. Raises DataError for a picture that is missing.
    """

    def __init__(self, pairs: TryOnDataset, folder: Path, config: ExperimentConfig):
        self.pairs = pairs
        self.pictures = PictureFolder(folder)
        self.size = smaller(config.data.size, factor(config))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> TryOnSample:
        sample = self.pairs[index]
        (picture,) = self.pictures([sample.pair_id])
        lowres = transforms.normalise(transforms.pad_picture(picture, self.size))
        return replace(sample, lowres=lowres).check()


def interpolated(folder: Path, data: DataConfig) -> Callable[[Sequence[str]], Tensor]:
    """pair ids -> the pictures in `folder`, enlarged by bicubic interpolation alone: uint8 (B, 3,
    H, W), unpadded.
    """
    pictures = PictureFolder(folder)

    def enlarge(pair_ids: Sequence[str]) -> Tensor:
        picture = transforms.normalise(pictures(pair_ids))
        return to_uint8(
            F.interpolate(picture, data.picture_size, mode="bicubic", align_corners=False)
        )

    return enlarge
