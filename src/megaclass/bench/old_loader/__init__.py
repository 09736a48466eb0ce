"""``megaclass bench loader``: images to batches, by stage, beside bare decode and other people's loaders."""
