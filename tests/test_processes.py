"""Results of real processes come together on the first, errors too."""

import json
import multiprocessing
import os
import socket

import pytest
import torch

from vton.errors import UserError
from vton.processes import (
    from_every_process,
    gathered,
    is_first_process,
    own_device,
    process_group,
    process_share,
    together,
)


def joins(rank: int, world: int, port: int, folder) -> None:
    os.environ |= {
        "RANK": f"{rank}",
        "WORLD_SIZE": f"{world}",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{port}",
    }

    def breaks_on_two_of_three() -> int:
        if rank:
            raise UserError(f"broken on {rank}")
        return rank

    with process_group():
        share, everyone, said = process_share(), gathered(lambda: 10 * rank), ""
        ranks = from_every_process(rank)
        try:
            gathered(breaks_on_two_of_three)
        except UserError as error:
            said = str(error)
        try:
            together(breaks_on_two_of_three)
        except UserError as error:
            said += f", {error}"
    (folder / f"{rank}").write_text(json.dumps([share, ranks, everyone, said]))


def test_three_processes_meet_and_none_waits_for_one_that_failed(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=joins, args=(rank, 3, port, tmp_path)) for rank in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = [json.loads((tmp_path / f"{rank}").read_text()) for rank in range(3)]
    everyone = [[0, 10, 20], None, None]
    said = ["broken on 1, broken on 1", ", broken on 1", ", broken on 1"]
    assert found == [[[rank, 3], [0, 1, 2], everyone[rank], said[rank]] for rank in range(3)]


def test_one_process_is_alone():
    with process_group():
        assert process_share() == (0, 1) and gathered(lambda: 1) == from_every_process(1) == [1]
        assert together(lambda: 1) == 1


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, True),
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),  # torchrun, second node
        ({"LOCAL_RANK": "1"}, False),  # Lightning's launcher
        ({"NODE_RANK": "1"}, False),
        ({"SLURM_PROCID": "1"}, False),  # srun
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),  # Lightning's launcher in a SLURM job
    ],
)
def test_one_process_speaks_before_they_are_connected(said, expected, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() == expected


def test_each_process_has_its_own_gpu_where_there_are_some(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert own_device("gpu") == torch.device("cuda", 3)
    assert own_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"torch finds no CUDA device.*trainer=cpu"):
        own_device("gpu")
