"""Report encoders from language models: adaptation and its evaluation."""
