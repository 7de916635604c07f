import vton  # noqa: F401 - before torchmetrics, lpips and piq, which import torchvision (see vton/_torchvision.py)
