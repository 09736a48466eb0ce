"""What is done to whole data sets: look at them, check them, rewrite them, copy them."""
