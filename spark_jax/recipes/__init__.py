"""The recipes: in a checkout they stand in configs/, which pyproject.toml installs into this package."""
