"""Backbones, necks, heads and what they learn by."""
