"""Backbones: modules from images to one vector a sample, and what is done to them as a whole.

Every backbone takes ``images_BCHW`` and returns ``(B, embedding_dim)``; it has the attributes
``embedding_dim`` and ``image_size``. Names and builders are in :mod:`megaclass.models.registry`.
"""
