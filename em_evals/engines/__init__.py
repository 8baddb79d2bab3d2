"""Engines that draw and score: one protocol, the pool that shares them, transformers (hf) and vLLM (vllm)."""
