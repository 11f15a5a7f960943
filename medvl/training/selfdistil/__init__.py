"""Self-distillation: an image tower learns from films or volumes alone, without a word of a report."""
