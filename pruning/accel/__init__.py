"""Training on the CPU at a speed that grows with what is pruned: compiled convolutions."""
