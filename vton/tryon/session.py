"""`TryOn`: a trained run and the networks that read photographs, held ready for many try-ons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from vton.config import ConfigError, DataConfig, ExperimentConfig, SamplerConfig
from vton.config.bounds import check_bounds
from vton.data.dataset import TryOnDataset
from vton.data.ranges import normalise
from vton.data.sample import CATEGORIES, Category, TryOnBatch, TryOnSample
from vton.data.transforms import pad_picture, unpad_picture
from vton.diffusion.denoiser import Step
from vton.errors import UserError
from vton.metrics.pictures import to_uint8
from vton.models.base import TryOnModule
from vton.models.precision import for_sampling
from vton.photos.backends import Networks
from vton.photos.errors import PhotoError
from vton.photos.framing import Frame, Layout, visible
from vton.photos.garment import PreparedGarment, prepare_garment
from vton.photos.person import Choice, PreparedPerson, prepare_person, require_mask
from vton.photos.prepare import described
from vton.photos.reading import read_mask, read_picture
from vton.processes import usable_device
from vton.runs.assemble import load_module
from vton.runs.cascade import Stage, factor, load_stage, reduced_size
from vton.runs.folder import RunFolder
from vton.runs.warp import RunWarp
from vton.tryon.prepared import PreparedFolder

Picture = Image.Image | Path | str
# Called after every step with how many are done, and how many there are; may raise to stop.
Watch = Callable[[int, int], None]

LEAST_HEIGHT = 512  # px at which photographs are read, however small the run's pictures
SEEDS = 2**31
LOST = 0.05  # share of a mask outside the frame from which it is said


@dataclass(frozen=True)
class Drawn:
    """One drawn picture.

    picture: the person's photograph with the garment painted in, at the photograph's size
    frame:   what the network drew, at the run's size
    seed:    that it was drawn with
    """

    picture: Image.Image
    frame: Image.Image
    seed: int


class TryOn:
    """Puts garments on people in photographs.

        try_on = TryOn("runs/gardiff-synthetic-tiny")
        picture = try_on("person.jpg", "garment.jpg")
        pictures = try_on("person.jpg", ["red.jpg", "blue.jpg"], seed=3)

    run: a finished run's folder, by default the newest under runs/. networks: what reads the
    photographs, by default those that come with the package. device: by default cuda if available.
    Raises UserError.
    """

    def __init__(
        self,
        run: str | Path | None = None,
        *,
        networks: Networks | None = None,
        device: str | None = None,
        stage: Stage | None = None,
    ):
        if stage is None:
            folder = RunFolder(Path(run)) if run else RunFolder.newest("runs")
            stage = load_stage(folder, whole=run is None)
        self.stages = stage.in_order()
        self.config = stage.config
        if self.config.model.kind != "architecture":
            raise UserError(
                f"{stage.run.path} is a run of {self.config.model.name}, which warps garments and "
                "draws no person. Use the run of an architecture."
            )
        if stage.enlarges_truth:
            raise UserError(
                f"{stage.run.path} enlarges pictures of another stage. Use the cascade's first run."
            )
        self.networks = networks or Networks.named()
        if any(part.config.data.densepose for part in self.stages) and not self.networks.densepose:
            raise UserError(
                f"{stage.run.path} reads DensePose's body parts, and none are made. Choose a "
                "network for them: --densepose small (for rendered data) or "
                "--densepose torchscript:FILE."
            )
        if any(part.config.data.person_other for part in self.stages):
            raise UserError(
                f"{stage.run.path} reads a picture of the same person in other clothes, which a "
                "photo is not. Use another run."
            )
        self.device = usable_device(device)
        self.modules: list[TryOnModule] = []
        self.warps: list[RunWarp | None] = []
        for part in self.stages:
            module = load_module(part.run, for_sampling(part.config), "weights")
            module.make_fast(self.device)
            self.modules.append(module.to(self.device))
            data = part.config.data
            learned = data.warp_source == "learned"
            self.warps.append(RunWarp(data.warp_run, data.picture_size) if learned else None)

    @property
    def layout(self) -> Layout:
        """Whose manner of framing the run has learned."""
        data = self.config.data
        return data.synthetic.layout if data.name == "synthetic" else data.name

    @property
    def categories(self) -> tuple[Category, ...]:
        """What the run can put on."""
        trained = self.config.data.category
        if trained != "all":
            return (trained,)
        return CATEGORIES[:1] if self.layout == "viton_hd" else CATEGORIES

    @property
    def reading_size(self) -> tuple[int, int]:
        """Height and width at which photographs are read: a multiple of the run's."""
        height, width = self.config.data.picture_size
        times = -(-LEAST_HEIGHT // height)
        return height * times, width * times

    def __call__(
        self,
        person: Picture | PreparedPerson,
        garment: Picture | PreparedGarment | Sequence[Picture | PreparedGarment],
        *,
        category: Category = "upper_body",
        mask: Picture | None = None,
        **options,
    ) -> Image.Image | list[Image.Image]:
        """The person in the garment, or in each of several, drawn as one batch.

        mask: white where to repaint, in place of the detected region. options: those of `draw`.
        Raises PhotoError.
        """
        if not isinstance(person, PreparedPerson):
            person = self.person(person, category, mask)
        elif mask is not None:
            person = with_mask(person, mask)
        several = isinstance(garment, list | tuple)
        garments = []
        for one in garment if several else [garment]:
            garments.append(one if isinstance(one, PreparedGarment) else self.garment(one))
        drawn = [one.picture for one in self.draw(person, garments, **options)]
        return drawn if several or len(drawn) > 1 else drawn[0]

    def person(
        self,
        photo: Picture,
        category: Category = "upper_body",
        mask: Picture | None = None,
        choice: Choice = "only",
    ) -> PreparedPerson:
        """A photograph made ready. Raises PhotoError, UserError for a category never trained."""
        self.require_category(category)
        prepared = prepare_person(
            read_picture(photo, "person"),
            category,
            self.networks,
            layout=self.layout,
            size=self.reading_size,
            choice=choice,
            rule=self.config.data.mask_rule,
        )
        return prepared if mask is None else with_mask(prepared, mask)

    def garment(self, photo: Picture) -> PreparedGarment:
        """A garment's photograph made ready. Raises PhotoError."""
        return prepare_garment(
            read_picture(photo, "garment"), self.networks, size=self.reading_size
        )

    def draw(
        self,
        person: PreparedPerson,
        garments: Sequence[PreparedGarment],
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        count: int = 1,
        captions: Sequence[str] = (),
        watch: Watch | None = None,
    ) -> list[Drawn]:
        """`count` pictures of every garment, with the seeds `seed`, `seed` + 1, ....

        steps, guidance: by default those of the run's configuration. captions: of the garments, by
        default their colours. watch: see `Watch`; what it raises ends the drawing. Raises
        ConfigError for numbers out of bounds, and for more or fewer captions than garments.
        """
        whole(count=count, seed=seed)
        if captions and len(captions) != len(garments):
            raise ConfigError(f"{len(captions)} captions for {len(garments)} garments.")
        if not garments:
            return []
        if not 1 <= count <= 16 or not 0 <= seed <= SEEDS - count:
            raise ConfigError(
                f"count={count}, seed={seed}: 1 to 16 pictures, with seeds from 0 to {SEEDS - 1}."
            )
        samplers = self.samplers(steps, guidance)
        total = self.total_steps(count, steps)
        done = 0

        def count_step(step: Step, prediction: Tensor, z: Tensor) -> None:
            nonlocal done
            done += 1
            if watch is not None:
                watch(min(done, total), total)

        told = list(captions) or [
            described(garment.picture, garment.mask, person.category) for garment in garments
        ]
        drawn: list[Drawn] = []
        for number in range(count):
            pictures = None
            for place, module in enumerate(self.modules):
                config = self.stages[place].config
                module.config = replace(module.config, sampler=samplers[place])
                samples = []
                for garment, caption in zip(garments, told, strict=True):
                    folder = PreparedFolder(person, garment, caption, for_photos(config.data))
                    pairs = TryOnDataset(folder, "test", "unpaired", warp=self.warps[place])
                    samples.append(pairs[0])
                if pictures is not None:
                    samples = with_lowres(samples, pictures, config)
                batch = TryOnBatch.collate(samples).to(self.device)
                pictures = module.generate(batch, seed + number, watch=count_step)
                pictures = to_uint8(unpad_picture(pictures, config.data.picture_size)).cpu()
            for array in pictures.permute(0, 2, 3, 1).numpy():
                frame = Image.fromarray(np.ascontiguousarray(array))
                pasted = person.frame.paste(person.photo, frame, person.mask)
                drawn.append(Drawn(pasted, frame, seed + number))
        return drawn

    def total_steps(self, count: int = 1, steps: int | None = None) -> int:
        """Steps that `draw` takes, all stages together."""
        return count * sum(sampler.steps for sampler in self.samplers(steps, None))

    def samplers(self, steps: int | None, guidance: float | None) -> list[SamplerConfig]:
        """How every stage is sampled. Raises ConfigError for numbers out of bounds."""
        if steps is not None:
            whole(steps=steps)
        if guidance is not None and not isinstance(guidance, Real):
            raise ConfigError(f"guidance={guidance!r} is no number.")
        given = {"steps": steps, "guidance": guidance}
        changes = {name: value for name, value in given.items() if value is not None}
        samplers = []
        for part in self.stages:
            # Made anew, so that the checks between settings see the new numbers.
            config = replace(part.config, sampler=replace(part.config.sampler, **changes))
            check_bounds(config.sampler, "sampler.")
            samplers.append(config.sampler)
        return samplers

    def require_category(self, category: Category) -> None:
        if category not in self.categories:
            known = ", ".join(self.categories)
            raise PhotoError(
                "garment",
                f"this run has learned {known} only, not {category}. Choose a run that was trained "
                "on DressCode's layout (data.synthetic.layout=dresscode renders one).",
            )


def whole(**numbers: object) -> None:
    """Raise ConfigError for a number that is not whole, by its name."""
    for name, number in numbers.items():
        if not isinstance(number, Integral):
            raise ConfigError(f"{name}={number!r} is no whole number.")


def with_lowres(
    samples: Sequence[TryOnSample], pictures: Tensor, config: ExperimentConfig
) -> list[TryOnSample]:
    """The samples with what the stage before has drawn. pictures: uint8 (B, 3, h, w)."""
    size = reduced_size(config.data.size, factor(config))
    enlarged = []
    for sample, picture in zip(samples, pictures, strict=True):
        lowres = normalise(pad_picture(picture, size))
        enlarged.append(replace(sample, lowres=lowres).check())
    return enlarged


def for_photos(data: DataConfig) -> DataConfig:
    """A run's data settings for photographs that are prepared: masks are theirs, and no limits."""
    warp = data.warp_source
    if warp in ("auto", "folder"):
        warp = "geometric"
    return replace(
        data,
        category="all",
        limit_train=0,
        limit_test=0,
        mask_source="folder",
        warp_source=warp,
        caption_source="folder",
        cache="none",
    )


def with_mask(person: PreparedPerson, mask: Picture) -> PreparedPerson:
    """The person with another region to repaint.

    mask: white where to repaint; painted on the photograph or a smaller or larger copy of it, or of
    exactly the size of `person.mask`, which is then taken for one of the frame. Raises PhotoError
    for a mask of another shape, an empty or a full one, and for another picture in its place.
    """
    mask = read_mask(mask)
    height, width = person.mask.shape
    warnings = list(person.warnings)
    if mask.size == (width, height) and mask.size != person.photo.size:
        frame = mask
    elif same_shape(mask.size, person.photo.size):
        if mask.size != person.photo.size:
            mask = mask.resize(person.photo.size, Image.Resampling.BILINEAR)
        frame = person.frame.cut(mask.convert("RGB"), (height, width)).convert("L")
        lost = share_outside(mask, person.frame)
        if lost > LOST:
            warnings.append(
                f"{lost:.0%} of the mask lies outside the part of the photo that is drawn, and "
                "stays as it is"
            )
    else:
        raise PhotoError(
            "mask",
            f"the mask is {mask.width}x{mask.height}, the photo {person.photo.width}x"
            f"{person.photo.height}. Paint the mask on the photo itself.",
        )
    chosen = np.asarray(frame) >= 128
    require_mask(chosen)
    return replace(person, mask=chosen, warnings=warnings)


def share_outside(mask: Image.Image, frame: Frame) -> float:
    """How much of what is white on a photo's mask lies outside a frame of the photo."""
    white = np.asarray(mask) >= 128
    left, top, right, bottom = (round(side) for side in visible(frame.box, mask.size))
    return 1 - white[top:bottom, left:right].sum() / max(1, white.sum())


def same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes have one aspect ratio, up to a pixel of the smaller picture."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(*one, *other)
