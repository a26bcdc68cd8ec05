"""What can this Triton do on this GPU, and why not.

    caps = compat.capabilities()            # this machine; also capabilities(tensor.device), capabilities("hip:gfx950")
    caps.gluon_cdna4                        # False
    caps.why("gluon_cdna4")                 # "needs the Gluon API of Triton 3.6: found 3.5.1, ..."
    compat.require("gluon_cdna4")           # raises CapabilityError with that reason

Importing this package imports neither torch nor Triton and starts no driver.
"""

from .capabilities import Capabilities, Capability, CapabilityError, Verdict
from .kernel import ExampleCall, Examples, Kernel, Launch
from .lookup import capabilities, require
from .operation import Operation, Step, Trace, Variant
from .registry import operations
from .switches import SwitchError, override
from .targets import Target

__all__ = [
    "Capabilities",
    "Capability",
    "CapabilityError",
    "ExampleCall",
    "Examples",
    "Kernel",
    "Launch",
    "Operation",
    "Step",
    "SwitchError",
    "Target",
    "Trace",
    "Variant",
    "Verdict",
    "capabilities",
    "operations",
    "override",
    "require",
]
