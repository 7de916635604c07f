"""Try-on of own photographs with a trained run: prepare in memory, draw, paste back."""

from vton.tryon.prepared import PreparedFolder
from vton.tryon.session import Drawn, TryOn

__all__ = ["Drawn", "PreparedFolder", "TryOn"]
