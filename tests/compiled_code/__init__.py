"""What every kernel compiles to, saved before a change and after it: see ``__main__``."""
