"""From what a hospital exports to pairs: which image belongs to which report, and what has no partner."""
