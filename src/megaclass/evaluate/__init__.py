"""What a model is worth: embeddings of a set, verification and classification, for any model and any data."""

# Further protocols: what ``megaclass evaluate`` calls one -> its module here, see :mod:`megaclass.evaluate.protocol`.
PROTOCOLS = {
    "all-pairs": "all_pairs",
    "identification": "identification",
    "ijb": "ijb",
    "retrieval": "retrieval",
}
