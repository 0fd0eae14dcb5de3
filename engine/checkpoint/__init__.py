"""Reading checkpoints: strict, local, and never executing anything that a checkpoint brings."""
