"""CT: recipes and prompts."""
