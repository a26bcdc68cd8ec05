"""Capabilities of here and now: a device or a named target, under the switches in force."""

from typing import Any

from . import _probes, _switches, targets
from ._capabilities import Capabilities
from .targets import Target

_snapshots: dict[str, Capabilities] = {}
_keys: dict[tuple[Target, str, str], str] = {}  # of snapshots, by what they depend on


def capabilities(device: Any = None) -> Capabilities:
    """What this Triton can do on ``device``, under the switches in force.

    device : None for CAPGATE_TARGET or else this machine's first visible GPU (asked anew at each call: "no GPU" is never
        remembered); a ``torch.device`` for that device; a :class:`Target` or its text (``"hip:gfx950"``, ``"cuda:90"``,
        ``"cpu"``) for any machine

    Asked again under the same settings of Triton (the interpreter, which ptxas) it gives the same snapshot. No driver is
    started. Raises ValueError for a target that does not exist or a device that is not visible.
    """
    setting = _switches.CONTEXT.in_force.key  # torch.compile compiles anew where this changes
    # Lines of their own: torch.compile makes each key a constant, and then follows the look-up. It can hand on no named tuple.
    if isinstance(device, Target):
        key = _named_key(setting, device.backend, device.arch, device.warp_size)
    else:
        key = _snapshot_key(setting, device)
    return _snapshots[key]


def require(name: str, device: Any = None) -> None:
    """Raise CapabilityError with the reason when capability ``name`` does not hold on ``device`` (as in capabilities())."""
    capabilities(device).require(name)


def target_of(device: Any) -> Target:
    """The target that ``device`` means, in any of the forms that :func:`capabilities` takes."""
    if device is None:
        return _switches.current().target or targets.default()
    if isinstance(device, Target):
        return device
    if isinstance(device, str):
        return targets.parse(device)
    if hasattr(device, "type"):
        return targets.of_device(device)
    raise TypeError(f"device: got {type(device).__name__}, needs a torch.device, a Target, 'hip:gfx950' or None")


def _snapshot_key(setting: str, device: Any) -> str:
    switched, target = _switches.current(), target_of(device)
    asked = (target, _probes.settings(), switched.key)
    key = _keys.get(asked)
    if key is None:
        key = _keys[asked] = f"{target} {target.warp_size} {asked[1]} {switched.key}"
    if key not in _snapshots:
        _snapshots.setdefault(key, Capabilities(target, switched.disabled, switched.enabled))  # the first thread's
    return key


def _named_key(setting: str, backend: str, arch: str, warp_size: int) -> str:
    return _snapshot_key(setting, Target(backend, arch, warp_size))


# What torch.compiler.assume_constant_result sets, without importing torch.
_snapshot_key._dynamo_marked_constant = True  # type: ignore[attr-defined]
_named_key._dynamo_marked_constant = True  # type: ignore[attr-defined]
