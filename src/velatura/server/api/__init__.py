"""Our own JSON API under /api: jobs, events, pictures, library, datasets, bases and the system.

jobs.py is the file to open first. Answers are pydantic values; errors have the shape of `server.errors.ErrorAnswer`.
"""
