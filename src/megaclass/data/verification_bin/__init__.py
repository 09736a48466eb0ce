"""Verification sets in one file, as the public face sets have them (``lfw.bin``): read with care, and written."""
