"""A fresh twin of a library's base: built, called beside it, compared submodule by submodule."""
