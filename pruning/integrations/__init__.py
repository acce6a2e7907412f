"""Callbacks for the training loops of others: PyTorch Lightning, and the Trainer of transformers."""
