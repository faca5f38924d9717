"""The YAML configuration: one schema, a checker that names file, line and key, and what the daemons are given."""
