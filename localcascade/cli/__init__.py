"""The command line: one file per group of commands, exit codes in one table (console.py)."""
