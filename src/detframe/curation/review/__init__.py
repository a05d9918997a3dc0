"""A local web page on which a person decides about suggestions to mend labels, hundreds an hour by keyboard."""
