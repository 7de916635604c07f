"""IMAGDressing-v1: customizable virtual dressing (Shen et al., AAAI 2025, arXiv 2407.12705)."""
