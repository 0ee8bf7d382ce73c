"""What the paper compares: views of an image, encodings of a network's activations, and the systems made of them."""
