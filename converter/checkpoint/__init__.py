"""Sources: from a folder, a file or a Hub id to a mapping of tensor name → lazy tensor; one file a format."""
