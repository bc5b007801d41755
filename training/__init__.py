"""Data sets, losses, metrics, loops and evaluation; importing this package does not import torch."""
