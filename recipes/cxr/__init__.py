"""Chest X-ray: recipes and prompts."""
