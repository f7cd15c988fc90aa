"""One module a command of the command line, with a function of the command's name; `app` declares their options."""
