"""The subcommands of `specheat`, one file each; `main` lists them."""
