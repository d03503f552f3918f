"""The widgets of the live app, one a file."""
