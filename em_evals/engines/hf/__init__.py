"""The transformers engine: rows of several cards join and leave one running batch."""
