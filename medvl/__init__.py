"""Medical vision-language models from a lab's own studies and reports."""

__version__ = "0.1.0"
