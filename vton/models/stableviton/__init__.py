"""StableVITON: a spatial encoder's features through zero-initialised cross-attention (Kim et al.,
CVPR 2024, arXiv 2312.01725).
"""
