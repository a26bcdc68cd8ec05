"""What can this Triton do on this GPU, and why not.

    caps = compat.capabilities()            # this machine; also capabilities(tensor.device), capabilities("hip:gfx950")
    caps.gluon_cdna4                        # False
    caps.why("gluon_cdna4")                 # "needs the Gluon API of Triton 3.6: found 3.5.1, ..."
    compat.require("gluon_cdna4")           # raises CapabilityError with that reason

Importing this package imports neither torch nor Triton and starts no driver.

These names, and these modules, are for anybody; a module whose name begins with an underscore is for this package alone.

============  =========================================================================================================
module        what it is for
============  =========================================================================================================
gluon         one Gluon surface over Triton 3.6 to 3.9: what kernels import; ``tl``: the classic language's, from 3.5.1 on
check         anybody's launches, recorded, and compiled for other Tritons and GPUs
offline       compiling an operation's variants for a GPU that is not here, and reading what they became
table         every capability: its meaning, and where it is known from
targets       targets by name, and the GPUs of this machine
versions      the builds of Triton, triton_kernels and torch; ``releases``: the release inside a version's text
tunings       tunings of a file, over those of the tables
report        everything that can be said, as JSON or for people
command       how a command ends; ``outputs``: the files that it writes; ``foreign``: files of others, checked;
              ``markdown``: tables; ``terminal``: text of others as text;
              ``thirdparty``: calls of code that may end in any way; ``spelling``: what helps after a misspelt name
============  =========================================================================================================
"""

from ._additions import Addition
from ._bound import Bound
from ._capabilities import Capabilities, CapabilityError, Verdict
from ._kernel import ExampleCall, Examples, Kernel, Launch
from ._lookup import capabilities, require
from ._measuring import Measurement
from ._operation import Operation, Step, Trace
from ._registry import operations
from ._repeats import Call, Calls, Repeats, extent
from ._switches import SwitchError, override, strict
from ._variant import Variant
from .check import record
from .table import Capability
from .targets import Target

__all__ = [
    "Addition",
    "Bound",
    "Call",
    "Calls",
    "Capabilities",
    "Capability",
    "CapabilityError",
    "ExampleCall",
    "Examples",
    "Kernel",
    "Launch",
    "Measurement",
    "Operation",
    "Repeats",
    "Step",
    "SwitchError",
    "Target",
    "Trace",
    "Variant",
    "Verdict",
    "capabilities",
    "extent",
    "operations",
    "override",
    "record",
    "require",
    "strict",
]
