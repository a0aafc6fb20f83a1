"""What the numbers become: the table of GPT-2's parameters, the ledger, precisions, and the data file."""
