"""Data sets get better here: labels reviewed and mended, splits guarded."""
