"""The fault suite: real brokers and real daemons, broken on purpose, and the books checked. See README.md."""
