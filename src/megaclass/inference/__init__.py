"""Trained models at work: loaded, predicting, exported."""
