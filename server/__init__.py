"""The command line and the HTTP server: everything a person calls."""
