"""What a model is worth: embeddings of a set, verification and classification, for any model and any data."""
