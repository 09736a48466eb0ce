"""Whole steps of the head as a benchmark: its cases, ours and a peer's, and what a step computes."""
