import os

os.environ["VTON_METRIC_WEIGHTS"] = ""  # no pretrained metric networks, whatever `make weights` has put on this machine
