"""Where a trained model meets its users: notebooks, and later servers and viewers."""
