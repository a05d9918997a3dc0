"""The same checkpoint as one file that holds everything from the camera's pixels to final boxes."""
