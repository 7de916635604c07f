"""Rendered try-on data: complete VITON-HD and DressCode folders with exact annotations,
deterministic by seed.

`ensure` writes a data set unless it is already there. What real data cannot give: the true picture
of every unpaired pair, so unpaired results can be measured against the truth.
"""

from vton.data.synthetic.catalogue import Defects
from vton.data.synthetic.writing import RENDERER_VERSION, STAMP, ensure, write

__all__ = ["RENDERER_VERSION", "STAMP", "Defects", "ensure", "write"]
