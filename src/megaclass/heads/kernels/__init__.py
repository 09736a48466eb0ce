"""The margin head's kernels. Triton is imported in this folder, nowhere else in the house."""
