"""Lets `import torchvision` succeed beside a torch build whose binary its compiled operators do not
match.

PyPI's torchvision is compiled against CUDA torch; beside a CPU-only torch its operators stay
unregistered, and `torchvision._meta_registrations` then fails on `torchvision::nms`. Nothing here
uses these operators (they are detection layers), so it is enough that their signatures exist. Where
they do load, nothing is touched.
"""

import sys
from importlib.abc import MetaPathFinder

SIGNATURES = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class _BeforeMetaRegistrations(MetaPathFinder):
    """Runs between torchvision's own attempt to load its operators and the module that needs their
    signatures.
    """

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision._meta_registrations":
            sys.meta_path.remove(self)
            define_missing_operators()
        return None  # the ordinary finders load the module


def define_missing_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for signature in SIGNATURES:
        if not hasattr(torch.ops.torchvision, signature.split("(")[0]):
            library.define(signature)
    # torch drops the definitions with the last reference
    define_missing_operators.library = library


def install() -> None:
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _BeforeMetaRegistrations())
