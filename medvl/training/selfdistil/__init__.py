"""Self-distillation: an image tower learns from films alone, without a word of a report."""
