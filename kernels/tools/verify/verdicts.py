"""What may become of a case."""

from typing import Any

Row = dict[str, Any]

AGREES = "agrees"  # with float64, and wrote nothing else
DISAGREES = "disagrees"
DOES_NOT_COMPILE = "does not compile"
RAISES = "raises"
FAULTS = "faults"  # the GPU takes no more work of the process
DIES = "dies"  # the process ended, or gave no answer in time
NOT_TAKEN = "not taken"  # by the variant, which says why
NOT_JUDGED = "not judged"  # because of what happened before

FAILURES = (DISAGREES, DOES_NOT_COMPILE, RAISES, FAULTS, DIES)
BROKEN = (FAULTS, DIES, NOT_JUDGED)  # what another process may have caused, so that the case is worth another try, alone
