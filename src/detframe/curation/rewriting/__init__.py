"""A data set written anew beside the old, in its own format: what is not changed stays as it is, byte for byte."""
