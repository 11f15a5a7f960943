"""Paired benchmarks: each prints its ratios, with the bar beside them."""
