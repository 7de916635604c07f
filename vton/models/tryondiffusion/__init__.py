"""TryOnDiffusion: a tale of two UNets, in pixels (Zhu et al., CVPR 2023, arXiv 2306.08276)."""
