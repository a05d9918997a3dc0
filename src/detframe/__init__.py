"""detframe: object detection from research to production and back."""

__version__ = "0.1.0"
