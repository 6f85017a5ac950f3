"""Reports: frozen values to JSON, text and HTML."""
