"""Pure and synchronous: from messages to outcomes. `now` is handed in; nothing here knows a clock or a socket."""
