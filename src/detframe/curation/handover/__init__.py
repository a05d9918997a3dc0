"""A queue of suspicious labels handed to other labelling tools, and what comes back turned into decisions."""
