"""Reads saved predictions and says what they mean."""
