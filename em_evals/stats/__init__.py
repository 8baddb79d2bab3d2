"""Every interval and every test, once. Numbers in, numbers out; no files and no torch."""
