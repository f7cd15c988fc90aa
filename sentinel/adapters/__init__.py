"""Adapters do I/O and decide nothing. None imports another, the stream, or the model."""
