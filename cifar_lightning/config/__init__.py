"""Configuration: composed, resolved and checked; and objects made from it."""
