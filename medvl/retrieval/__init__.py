"""Embedding, index and search: cases by text, by image, or both."""
