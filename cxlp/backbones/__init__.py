"""A network by name, import path or module, cut after named layers: images in, their maps out."""
