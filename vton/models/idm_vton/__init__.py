"""IDM-VTON: two SDXL UNets joined in self-attention (Choi et al., ECCV 2024, arXiv 2403.05139)."""
