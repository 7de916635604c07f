"""A test's architecture: one UNet paints a canvas of person and garment, as CatVTON does."""
