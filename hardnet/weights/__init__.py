"""Pretrained weights: the catalogue, downloads, checkpoints."""
