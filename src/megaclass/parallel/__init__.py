"""Ranks: groups and collectives, rendezvous, heartbeat, gradients."""
