"""How an adapter turned during training: rotation of its vectors, phase transitions."""
