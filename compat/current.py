"""Capabilities of here and now: a device or a named target, under the switches in force."""

import sys
from typing import Any

from . import switches, targets
from .capabilities import Capabilities
from .targets import Target

_snapshots: dict[str, Capabilities] = {}


def capabilities(device: Any = None) -> Capabilities:
    """What this Triton can do on ``device``, under the switches in force.

    device : None for CAPGATE_TARGET or else this machine's first visible GPU (asked anew at each call: "no GPU" is never
        remembered); a ``torch.device`` for that device; a :class:`Target` or its text (``"hip:gfx950"``, ``"cuda:90"``,
        ``"cpu"``) for any machine

    No driver is started. Raises ValueError for a target that does not exist or a device that is not visible.
    """
    key = _snapshot_key(device)  # a line of its own: torch.compile makes it a constant, and then follows the look-up
    return _snapshots[key]


def require(name: str, device: Any = None) -> None:
    """Raise CapabilityError with the reason when capability ``name`` does not hold on ``device`` (as in capabilities())."""
    capabilities(device).require(name)


def target_of(device: Any) -> Target:
    """The target that ``device`` means, in any of the forms that :func:`capabilities` takes."""
    if device is None:
        return switches.current().target or targets.default()
    if isinstance(device, Target):
        return device
    if isinstance(device, str):
        return targets.parse(device)
    if hasattr(device, "type"):
        return targets.of_device(device)
    raise TypeError(f"device: got {type(device).__name__}, needs a torch.device, a Target, 'hip:gfx950' or None")


def _snapshot_key(device: Any) -> str:
    setting, target = switches.current(), target_of(device)
    loaded = getattr(sys.modules.get("triton"), "__version__", None)  # an engine's placeholder may give way to the real one
    key = f"{target.backend}:{target.arch} {loaded} {setting.key}"
    if key not in _snapshots:
        _snapshots[key] = Capabilities(target, setting.disabled)
    return key


# What torch.compiler.assume_constant_result sets, without importing torch.
_snapshot_key._dynamo_marked_constant = True  # type: ignore[attr-defined]
