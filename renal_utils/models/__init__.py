"""Networks: blocks, one file a family, and ``build`` with the table of names."""
