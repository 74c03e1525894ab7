"""The language prompts are written in; torch-free."""
