"""Experiments whose tables stand in the documentation: each is one command, with n, seeds and intervals."""
