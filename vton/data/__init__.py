"""Data: folders on disk in, `TryOnSample` out. `module.TryOnDataModule` is the only door."""
