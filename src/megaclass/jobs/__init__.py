"""Jobs of a cluster: the file of its site, and the script for its scheduler."""
