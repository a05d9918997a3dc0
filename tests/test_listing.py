"""Lists are whole where they are short, and say how many entries they leave out."""

from detframe.listing import below, in_a_row


def test_entries_beyond_the_most_are_counted() -> None:
    assert in_a_row([]) == below([]) == ""
    assert in_a_row(["a", "b"], most=2) == "a, b"
    assert in_a_row(["a", "b", "c", "d"], most=2) == "a, b and 2 more"
    assert below(["a", "b"], most=2) == "\n  a\n  b"
    assert below(["a", "b", "c"], most=2) == "\n  a\n  b\n  and 1 more"
