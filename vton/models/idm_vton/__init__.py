"""IDM-VTON: two SDXL UNets that meet in self-attention (Choi et al., ECCV 2024, arXiv 2403.05139)."""
