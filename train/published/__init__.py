"""How published checkpoints name their tensors, and where each belongs in our networks."""
