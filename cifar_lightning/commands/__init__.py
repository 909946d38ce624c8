"""The function behind each entry, by the entry's name."""
