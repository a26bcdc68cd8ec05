"""Signs of life: nobody waits for long without a word."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

from capgate.compat.terminal import console as plain_console

SILENCE = 2.4  # seconds between two words, where nothing can turn; twice that where one work follows another


@contextmanager
def working(words: str) -> Iterator[None]:
    """Say on standard error what is being done meanwhile: beside a spinner on a terminal, in a line now and then elsewhere."""
    console = plain_console(stderr=True)
    if console.is_terminal:
        with console.status(words):
            yield
        return
    ended = Event()

    def tell() -> None:
        began = time.monotonic()
        while not ended.wait(SILENCE):
            console.print(f"{words}: {time.monotonic() - began:.0f} s so far")

    teller = Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()
