"""vton: virtual try-on diffusion architectures compared on equal terms."""

from vton import _torchvision

__version__ = "0.1.0"

_torchvision.install()
