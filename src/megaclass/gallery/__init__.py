"""Galleries: embeddings of known identities, in which images are looked for."""

INDEXES, TEMPLATES = ["exact", "hnsw", "ivf"], ["max", "mean"]
