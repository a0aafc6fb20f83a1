"""The model folder: what is written, and the manifest and the certificate that speak of it."""
