"""What ``megaclass doctor`` looks at: a machine, what a recipe asks of it, and a run directory."""
