"""GarDiff: garment-focused diffusion (Wan et al., ECCV 2024, arXiv 2409.08258)."""
