"""Configuration files: the document as TOML or JSON, nvmetcli's JSON, and what changes when a file is read again."""
