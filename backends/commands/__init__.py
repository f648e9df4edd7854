"""The subcommands certify, doctor and pairs."""
