"""How an adapter changed during training: rotation of its vectors, phase transitions."""
