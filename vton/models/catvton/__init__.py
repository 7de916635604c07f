"""CatVTON: one UNet over person and garment (Chong et al., ICLR 2025, arXiv 2407.15886)."""
