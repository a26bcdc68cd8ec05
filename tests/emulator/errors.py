"""What stops an emulated launch."""


class EmulationError(Exception):
    """The program did what no correct gfx950 program does, or what this emulator does not know."""


class UnknownInstruction(EmulationError):  # noqa: N818
    """An instruction, operand or modifier that the emulator has no meaning for; the message holds its text."""


class MissingWait(EmulationError):  # noqa: N818
    """A register, or bytes of LDS, used before the s_waitcnt that covers the memory operation in flight to them."""


class Race(EmulationError):  # noqa: N818
    """With no barrier between, two waves of a workgroup touch a byte of LDS, one of them changing it, or one of them loads what
    the other one stored in global memory."""


class OutOfBounds(EmulationError):  # noqa: N818
    """An access outside every buffer, or outside the workgroup's LDS."""


class Uninitialised(EmulationError):  # noqa: N818
    """A read of memory that nothing has written."""


class Deadlock(EmulationError):  # noqa: N818
    """A loop that does not end within the launch's limit of instructions."""
