"""All intervals and tests, each implemented once. Numbers in, numbers out; no files and no torch."""
