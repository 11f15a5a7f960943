"""The sentence that every output carries."""

NOTICE = "Research use only. Not a medical device. Not for clinical use."
