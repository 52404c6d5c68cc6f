"""The command line: one module a command. The only place that turns errors into messages and exit codes."""
