import gc
import os
import socket
from pathlib import Path

import pytest

# no pretrained metric networks, whatever `make weights` has put on this machine
os.environ["VTON_METRIC_WEIGHTS"] = ""


def pytest_configure(config):
    """Tests see GPUs only where those marked gpu are chosen; trainer=auto would take them."""
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_finish():
    """What the libraries hold stays; looking through it for garbage again and again costs time."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def offline():
    """Any look at another machine fails the test that causes it."""
    connect, resolve = socket.socket.connect, socket.getaddrinfo
    here = ("127.0.0.1", "localhost", "::1")

    def connect_here(self, address):
        if (
            isinstance(address, tuple) and address[0] not in here
        ):  # paths of Unix sockets are strings
            pytest.fail(f"opened a connection to {address}")
        return connect(self, address)

    def resolve_here(host, *arguments, **options):
        if host not in (None, *here, socket.gethostname()):
            pytest.fail(f"asked for the address of {host}")
        return resolve(host, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_here)
        patch.setattr(socket, "getaddrinfo", resolve_here)
        yield


@pytest.fixture(scope="session")
def rendered(tmp_path_factory) -> Path:
    """Where the tests' synthetic data lies; rendered by the first command that needs it."""
    return tmp_path_factory.mktemp("rendered")


pytest_plugins = ["tests.models.idm_vton.published"]
