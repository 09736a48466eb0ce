"""Packing: images from a folder, a table, an .npz or a tar straight into a record set."""

from megaclass.data.pack.packer import PackSummary, pack

__all__ = ["PackSummary", "pack"]
