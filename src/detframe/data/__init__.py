"""Reading, writing, checking and loading images and boxes."""
