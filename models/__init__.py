"""Torch networks under stable registry names; importing this package does not import torch."""
