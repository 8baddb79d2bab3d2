"""The vLLM engine: our server with steering, its client, and what vLLM computes exactly."""
