"""Pretrained weights: read strictly, fetched and checked; what a file lacks is never made up."""
