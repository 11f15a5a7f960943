"""CT: recipes and prompts."""

DEFAULT = "local-global"
