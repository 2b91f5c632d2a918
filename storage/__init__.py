"""The database: what the loop remembers."""
