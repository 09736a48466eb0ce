"""Stability: one recipe trained with several seeds, and how far apart they end."""
