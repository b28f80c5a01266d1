"""The command `saga`: one file per command. The only package that prints."""
