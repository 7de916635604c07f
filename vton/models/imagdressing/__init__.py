"""IMAGDressing-v1: interactive modular apparel generation (Shen et al., AAAI 2025, arXiv
2407.12705).
"""
