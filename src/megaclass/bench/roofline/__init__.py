"""Roofline bounds of backbones: what their layers compute and move, and what a machine could do with that."""
