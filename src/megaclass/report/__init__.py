"""Tables and pictures from the files that runs leave behind: no torch, no GPU."""
