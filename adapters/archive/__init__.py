"""A log in a directory of files: their format, writing them, and reading them with nothing taken on trust."""
