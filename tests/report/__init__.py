import vton  # noqa: F401 - before anything that imports torchvision (see vton/_torchvision.py)
