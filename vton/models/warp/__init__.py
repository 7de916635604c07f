"""A learned warp: LaDI-VTON's warping module (Morelli et al., ACM MM 2023, arXiv 2305.13501)."""
