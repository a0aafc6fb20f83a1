"""How fast a model folder runs on this machine, in what memory, and how near that is to the machine's limit."""
