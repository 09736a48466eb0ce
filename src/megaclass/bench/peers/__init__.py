"""Other people's work beside ours: heads and training loops, run from a directory that the user gives, and loaders, where
they are installed."""
