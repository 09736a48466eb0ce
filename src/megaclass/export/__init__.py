"""Trained models for other programs: as a network, as weights alone, and to train on elsewhere."""
