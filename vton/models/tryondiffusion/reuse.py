"""Garment features of sampling, each computed once (exactly: nothing here changes a number beyond
rounding).

FiLM hands the time to both UNets, so a garment's features differ at every step; but they never
depend on z_t. Hence those of several steps are made in one pass, and those of the null branch,
which depend on nothing but weights, picture size and time, are kept from one picture to the next.

Legend: B rows of a batch, D rows with a garment, E width of the conditioning vector, S steps made
in one pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vton.diffusion.denoiser import Conditions, Features
from vton.models.rows import select_rows
from vton.models.tryondiffusion.network import ParallelUNet
from vton.processes import to_device

Table = dict[float, Features]  # timestep -> features of its rows


class GarmentReuse:
    """Garment features of a sampling step, from what earlier steps and pictures left.

    grid: gives the timesteps of the configured sampling run in order. It decides only what is made
        ahead: what is read is found under its own timestep, or made.
    timesteps: the t of pure noise.
    steps: S.
    null_table: whether the null branch's features are kept.
    """

    def __init__(
        self,
        network: ParallelUNet,
        grid: Callable[[], list[float]],
        timesteps: int,
        steps: int,
        null_table: bool,
    ):
        self.network = network
        self.grid = grid
        self.timesteps = timesteps
        self.steps = steps
        self.null_table = null_table
        self.forget()

    def forget(self) -> None:
        """Drop everything, as when weights change without a trace."""
        self.made_for: tuple | None = None
        self.null_static: Tensor | None = None
        self.null: Table = {}
        self.source: tuple[Tensor, ...] = ()
        self.dressed: Table = {}

    def __call__(self, conditions: Conditions, t: Tensor) -> Features:
        """conditions as `TryOnStage.condition` makes them, t (B,) all equal -> features, and "row"
        where rows share.
        """
        self.check(conditions)
        self.check_source(conditions)
        time = float(t[0])
        garment = conditions["garment"]
        static = conditions["levels"] + conditions["poses"]
        is_null = conditions["null"].tolist()
        bare = [row for row, null in enumerate(is_null) if null]
        dressed = [row for row, null in enumerate(is_null) if not null]
        shared = bool(bare) and self.null_table and all_rows_equal(select_rows(static, bare))
        if not shared:  # every row has its own
            return self.dressed_features(garment, static, time)
        first = slice(bare[0], bare[0] + 1)
        null = self.null_features(garment[first], static[first], time)
        row = torch.zeros(len(is_null), dtype=torch.int64)
        if not dressed:
            return null | {"row": to_device(row, static.device)}
        dressed_garment = select_rows(garment, dressed)
        own = self.dressed_features(dressed_garment, select_rows(static, dressed), time)
        row[dressed] = torch.arange(1, len(dressed) + 1)
        features = {name: torch.cat([null[name], own[name]]) for name in null}
        return features | {"row": to_device(row, static.device)}

    def check(self, conditions: Conditions) -> None:
        """Forget what other weights, sizes or precisions made."""
        garment = conditions["garment"]
        weights = list(self.network.parameters())
        versions = []
        for parameter in weights:
            version = 0 if parameter.is_inference() else parameter._version
            versions.append((parameter.data_ptr(), version))
        kind = garment.device.type
        autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        made_for = (versions, garment.shape[-2:], weights[0].dtype, garment.device, autocast)
        if made_for != self.made_for:
            self.forget()
            self.made_for = made_for

    def check_source(self, conditions: Conditions) -> None:
        """Forget the garments of other conditions; holding these keeps their identities taken."""
        source = tuple(conditions[name] for name in ("garment", "levels", "poses"))
        if not self.source or any(
            kept is not given for kept, given in zip(self.source, source, strict=True)
        ):
            self.source = source
            self.dressed = {}

    def null_features(self, garment: Tensor, static: Tensor, time: float) -> Features:
        """garment (1, 3, H, W) of zeros, static (1, E) -> (1, C, h, w) each, kept."""
        if self.null_static is None or not torch.equal(self.null_static, static):
            self.null = {}
            self.null_static = static.clone()
        self.fill(self.null, garment, static, time)
        return self.null[time]

    def dressed_features(self, garment: Tensor, static: Tensor, time: float) -> Features:
        """garment (D, 3, H, W), static (D, E) -> (D, C, h, w) each; handed out once, then
        forgotten.
        """
        self.fill(self.dressed, garment, static, time)
        return self.dressed.pop(time)

    def fill(self, table: Table, garment: Tensor, static: Tensor, time: float) -> None:
        """Have `time` in the table; if it is not, make it and the following ones, S together, in
        one pass.
        """
        if time in table:
            return
        grid = self.grid()
        later = grid[grid.index(time) + 1 :] if time in grid else []
        times = [time, *(t for t in later if t not in table)][: self.steps]
        t = torch.tensor(times)
        e = self.network.embedding.time(t / self.timesteps)[:, None] + static
        features = self.network.encode_garment(garment.repeat(len(times), 1, 1, 1), e.flatten(0, 1))
        for place, at in enumerate(times):
            table[at] = {}
            for name, feature in features.items():
                table[at][name] = feature.unflatten(0, (len(times), -1))[place]


def all_rows_equal(rows: Tensor) -> bool:
    """Whether the rows of a (B, E) tensor are all the same."""
    return torch.equal(rows, rows[:1].expand_as(rows))
