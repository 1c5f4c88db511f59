"""Inference: images to labels, embeddings and Grad-CAM maps; resumable output."""
