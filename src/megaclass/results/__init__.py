"""What runs leave behind: the machine, events, rows, run directories, published numbers. No torch."""
