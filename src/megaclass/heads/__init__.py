"""The layer between embeddings and loss: margins, the class-sharded softmax, Partial FC, the linear head."""
