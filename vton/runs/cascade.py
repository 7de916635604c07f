"""Stages: which runs belong to one cascade, and how the pictures of one reach the next.

    runs/<name>/            the first stage, a run folder like any other
    runs/<name>/<stage>/    an upper one

A single network is a stage that nothing stands before. The stages of an architecture that names
them (ModelConfig.CASCADE) are linked: each one's `before` is the stage whose pictures it enlarges.

Pictures are handed over as the PNGs by pair that the stage before has written, and reach the model
as TryOnBatch.lowres: a stage enlarges exactly what the table measures, whichever process drew it.
Rounding to 8 bits moves a value by at most 1/255 in [-1, 1].
"""
# Shapes: B batch, H W height and width of a stage's pictures, n how many times it enlarges

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from vton.config import DataConfig, ExperimentConfig, flatten
from vton.data import boxes, transforms
from vton.data.compact import EVERYTHING, CompactSample, Fields
from vton.data.dataset import TryOnDataset
from vton.data.module import TryOnDataModule
from vton.data.ranges import normalise
from vton.data.sample import DataError, Order, TryOnSample, joined_id
from vton.errors import UserError
from vton.metrics.pictures import PictureFolder, to_uint8
from vton.runs.folder import RunFolder

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
    "eval.shuffled_pairs",
)


@dataclass(frozen=True)
class Stage:
    """A trained network: its run, its settings, and the stage whose pictures it enlarges.

    before: None for a single network, a cascade's first stage, and a stage that is evaluated alone
    """

    run: RunFolder
    config: ExperimentConfig
    before: Stage | None = None

    def in_order(self) -> list[Stage]:
        """The stages that are sampled before this one, first to last, and this one."""
        earlier = [] if self.before is None else self.before.in_order()
        return [*earlier, self]

    @property
    def enlarges_truth(self) -> bool:
        """Whether this is an upper stage that is evaluated alone, on the reduced truth."""
        return bool(self.config.model.upper_stage) and self.before is None


def load_stage(run: RunFolder, *overrides: str, whole: bool = False) -> Stage:
    """The run as a stage, linked to those below it; overrides act on each.

    A cascade's first stage stands for the whole cascade, as any stage does with `whole`: the last
    trained stage is loaded. A single network has nothing before it, nor has any stage with
    eval.chain=false. Raises UserError for a stage that is absent in between or does not fit the one
    before.
    """
    config = run.load_config(*overrides)
    model = config.model
    if not model.CASCADE or not config.eval.chain:
        return Stage(run, config)

    folders = _stage_folders(run, config)
    names = list(folders)
    last = names.index(model.stage)
    if whole or not model.upper_stage:
        for place in range(last + 1, len(names)):
            if folders[names[place]].has_checkpoint:
                last = place

    stage = None
    for name in names[: last + 1]:
        folder = folders[name]
        if not folder.config.exists():
            raise UserError(
                f"{folders[names[last]].path} enlarges pictures of stage {name}, but there is no "
                f"run in {folder.path}. Train it (model.stage={name}). {ALONE}"
            )
        stage = Stage(folder, folder.load_config(*overrides), before=stage)
        own = stage.config.model
        if own.name != model.name or own.stage != name:
            raise UserError(f"{folder.path} is not stage {name} of {model.name}. {ALONE}")
        require_fit(stage)
    return stage


def _stage_folders(run: RunFolder, config: ExperimentConfig) -> dict[str, RunFolder]:
    """Run folders by stage of the cascade that a run belongs to, whether they are there or not."""
    first = run
    if config.model.upper_stage:
        first = RunFolder(run.path.absolute().parent)
    folders = {}
    for name, times in config.model.CASCADE.items():
        folders[name] = first if times == 1 else RunFolder(first.path / name)
    return folders


def require_fit(stage: Stage) -> None:
    """Raise UserError, naming both, unless the stage can enlarge the pictures of the one before."""
    before = stage.before
    if before is None:
        return
    both = f"{before.run.path} and {stage.run.path} cannot be chained"
    smaller_settings = flatten(asdict(before.config))
    settings = flatten(asdict(stage.config))
    differing = []
    for key in SHARED:
        if smaller_settings[key] != settings[key]:
            differing.append(f"{key} is {smaller_settings[key]} and {settings[key]}")
    if differing:
        raise UserError(f"{both}: {'; '.join(differing)}. An override acts on all stages. {ALONE}")

    times = factor(stage.config)
    data = stage.config.data
    given = before.config.data.picture_size
    margins = boxes.margins(data.picture_size, data.size)
    margins_divide = all(side % times == 0 for side in margins)
    if given != reduced_size(data.picture_size, times) or not margins_divide:
        raise UserError(
            f"{both}: pictures of {list(given)} are not those of {list(data.picture_size)} reduced "
            f"{times} times (data.size is {list(before.config.data.size)} and {list(data.size)}). "
            f"{ALONE}"
        )


def require_same_pairs(
    stage: Stage, data: TryOnDataModule, data_before: TryOnDataModule, orders: Iterable[Order]
) -> None:
    """Raise DataError unless a stage has the same test pairs as the one before, naming one."""
    for order in orders:
        earlier = set(data_before.eval_dataset(order).pair_ids)
        pairs = set(data.eval_dataset(order).pair_ids)
        if pairs != earlier:
            raise DataError(
                f"{stage.before.run.path} and {stage.run.path} cannot be chained: "
                f"{data_before.root} has {len(earlier)} {order} test pairs, {data.root} "
                f"{len(pairs)}, and {min(earlier ^ pairs)} is in one only. "
                f"Use one data set at both sizes. {ALONE}"
            )


def factor(config: ExperimentConfig) -> int:
    """How many times the configured stage enlarges."""
    return config.model.CASCADE[config.model.stage]


def reduced_size(size: tuple[int, int], times: int) -> tuple[int, int]:
    """Height and width of the pictures that a stage enlarges."""
    height, width = size
    return height // times, width // times


class WithLowres(Dataset):
    """A test split whose samples bring the smaller picture that the configured stage enlarges.

    Item i is sample i of `pairs` with lowres (3, H / n, W / n) in [-1, 1], padded as the sample is.
    It is read from `folder`, where the stage before has written it. Between stages pictures change
    their range here and nowhere else. Raises DataError for a picture that is missing.
    """

    def __init__(self, pairs: TryOnDataset, folder: Path, config: ExperimentConfig):
        self.pairs = pairs
        self.pictures = PictureFolder(folder)
        self.size = reduced_size(config.data.size, factor(config))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> TryOnSample:
        sample = self.pairs[index]
        return replace(sample, lowres=self.lowres(sample.pair_id)).check()

    def compact(self, index: int, wanted: Fields = EVERYTHING) -> CompactSample:
        """Item `index` in bytes, with the wanted fields and its smaller picture."""
        sample = self.pairs.compact(index, wanted)
        pair_id = joined_id(sample.values["person_id"], sample.values["garment_id"])
        sample.tensors["lowres"] = self.lowres(pair_id)
        return sample

    def lowres(self, pair_id: str) -> Tensor:
        (picture,) = self.pictures.read([pair_id])
        return normalise(transforms.pad_picture(picture, self.size))


def interpolated(pictures: Tensor, data: DataConfig) -> Tensor:
    """Pictures of the stage before, enlarged by bicubic interpolation alone and unpadded.

    pictures: uint8 (B, 3, H / n, W / n); returns uint8 (B, 3, H, W)
    """
    enlarged = F.interpolate(
        normalise(pictures), data.picture_size, mode="bicubic", align_corners=False
    )
    return to_uint8(enlarged)
