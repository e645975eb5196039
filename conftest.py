"""Shared by all tests and doctests of the project."""

pytest_plugins = ["pytester"]
