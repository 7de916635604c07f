"""What is derived where a data set has no file for it: agnostic masks, silhouettes, warped garments."""
