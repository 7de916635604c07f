"""vton: virtual try-on diffusion architectures compared on equal terms."""

import logging
import os
import pkgutil

from vton import _torchvision

__version__ = "0.1.0"

_torchvision.install()

# Where bitsandbytes is installed, importing it warns of a 4-bit kernel that nothing here uses.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

# How long a thread of libgomp spins at a barrier before it sleeps. Torch's threads meet thousands
# of barriers in a training step, and beside another busy process a spinning thread burns the time
# that the one it waits for would need. libgomp reads it when torch is loaded.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"


def __getattr__(name: str):
    """`from vton import TryOn`, without importing torch for everybody else."""
    if name == "TryOn":
        return pkgutil.resolve_name("vton.tryon:TryOn")
    raise AttributeError(f"module 'vton' has no attribute {name!r}")
