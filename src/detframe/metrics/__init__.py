"""What a detector is judged by."""
