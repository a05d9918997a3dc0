"""Heads: feature maps in, detections and losses out."""
