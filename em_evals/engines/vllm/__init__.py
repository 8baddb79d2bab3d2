"""The vLLM engine: a server of our own with steering, its client, and what vLLM can be trusted with."""
