"""``megaclass bench train``: whole training steps, data included, by device count, batch, precision and recipe."""
