"""The conformance kit that backends of third parties inherit."""
