"""Leffa: two UNets without text, joined in self-attention, and a flow loss (arXiv 2412.08486)."""
