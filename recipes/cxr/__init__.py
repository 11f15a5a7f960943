"""Chest X-ray: recipes and prompts."""

DEFAULT = "multi"
