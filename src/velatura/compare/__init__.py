"""Pictures and figures side by side."""
