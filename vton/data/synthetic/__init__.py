"""Rendered try-on data: complete VITON-HD and DressCode folders with exact annotations.

`ensure` writes a data set unless it is already there; the same seed gives the same bytes. What real
data cannot give: the true picture of every unpaired pair, so that unpaired results can be measured
against the truth.

    writing                             `ensure` and `write`, in parallel processes
    write_viton_hd, write_dresscode     the files of one entry and the lists, by layout
    files, keypoints, words             single files in the data sets' own formats
    catalogue                           persons, garments, who wears what, deliberate defects
    people                              random persons
    body, garment, texture              shapes and parameters of what is drawn
    maps, layers, parts                 where each point of the picture lies, and what it shows
    head, colours, shading, render      drawing
    profile                             tabulated functions
"""

from vton.data.synthetic.catalogue import Defects
from vton.data.synthetic.writing import RENDERER_VERSION, STAMP, ensure, write

__all__ = ["RENDERER_VERSION", "STAMP", "Defects", "ensure", "write"]
