"""Shared by all tests and doctests of the project; collects the Python blocks of the documentation as tests."""

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

pytest_plugins = ["pytester"]

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()], patterns=["docs/**/*.md", "docs/reference/checks/*.md", "README.md"]
).pytest()
