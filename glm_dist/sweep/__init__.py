"""One command over many settings: points, their processes, and the table at the end."""
