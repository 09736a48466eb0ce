"""Packing: images from a folder, a table, an .npz or a tar straight into a record set."""
