"""Galleries: embeddings of known identities, in which images are looked for."""
