"""Prediction on images and videos: inputs, the pipeline, videos, and the command's function."""
