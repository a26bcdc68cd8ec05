"""Which GPUs the *_VISIBLE_DEVICES variables leave: three readers, since no two runtimes read such a list alike.

Each takes the text of a variable and the GPUs' UUIDs in the runtime's own order ("" for a GPU that shows none), and returns the
positions of those that stay visible, in their new order.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile

NO_AMD_UUID = "GPU-XX"  # what ROCr calls a GPU without a UUID: amd_gpu_agent.cpp, HSA_AMD_AGENT_INFO_UUID


def cuda(setting: str, uuids: Sequence[str]) -> list[int]:
    """CUDA_VISIBLE_DEVICES as CUDA reads it; entries that name MIG instances are NVML's to look up, and no GPU here.

    Numbers as strtoul has them, or UUIDs, which may be cut short while they fit one GPU; the first entry decides which. The
    first entry that names no GPU ends the list, and a repeated one empties it.

    Source: torch/cuda/__init__.py, _parse_visible_devices and _transform_uuid_to_ordinals, which were held against a driver;
    the CUDA programming guide, "CUDA Environment Variables", says the same of unknown indices and of short UUIDs.
    """
    entries = setting.split(",")
    if setting.startswith("GPU-"):
        given = list(takewhile(lambda entry: entry.startswith("GPU-"), entries))
        positions = _known(_only(at for at, uuid in enumerate(uuids) if uuid.startswith(entry)) for entry in given)
        return [] if _repeats(given) or _repeats(positions) else positions
    numbers = list(takewhile(lambda number: number >= 0, map(_strtoul, entries)))
    return [] if _repeats(numbers) else list(takewhile(lambda number: number < len(uuids), numbers))


def rocr(setting: str, uuids: Sequence[str]) -> list[int]:
    """ROCR_VISIBLE_DEVICES as ROCr reads it, before HIP reads its own.

    Any case, spaces around an entry, numbers as strtol has them (hexadecimal, octal), UUIDs that may be cut short while they
    fit one GPU. An entry that names none ends the list, as does a repeated one; an empty one is an exception inside ROCr.

    Source: ROCR-Runtime, core/runtime/amd_filter_device.cpp, BuildRvdTokenList, ProcessUuidToken and BuildUsrDeviceList.
    """
    entries = setting.split(",")
    if not entries[-1]:
        entries.pop()  # std::getline gives no token behind the last comma
    visible: list[int] = []
    for entry in entries[: len(uuids)]:
        token = entry.upper().strip()
        if not token:
            return []  # token.at(0) throws, hsa_init fails, and HIP has no GPU at all
        if token.startswith("G"):
            long_enough = 5 <= len(token) <= 20  # more than "GPU-", at most the whole of it
            position = _only(at for at, uuid in enumerate(uuids) if long_enough and uuid.upper().startswith(token))
        else:
            position = _strtol(token)
        if position is None or not 0 <= position < len(uuids) or position in visible:
            break
        visible.append(position)
    return visible


def hip(setting: str, uuids: Sequence[str]) -> list[int]:
    """HIP_VISIBLE_DEVICES, or CUDA_VISIBLE_DEVICES in its place, as HIP reads it, among what ROCr left.

    Plain numbers without spaces, signs or leading zeros, and any part of a UUID in its own case, which means the first GPU that
    it fits. An entry that names none ends the list; a repeated one is passed over.

    Source: clr, rocclr/device/rocm/rocdevice.cpp, Device::init.
    """
    entries = setting.split(",")
    if len(entries) > 1 and not entries[-1]:
        entries.pop()  # the loop ends at the end of the text
    visible: list[int] = []
    for entry in entries:
        if "GPU-" in entry:
            position = next((at for at, uuid in enumerate(uuids) if entry in (uuid or NO_AMD_UUID)), None)
        else:
            position = int(entry) if re.fullmatch(r"0|[1-9][0-9]*", entry) else None
        if position is None or position >= len(uuids):
            break
        if position not in visible:
            visible.append(position)
    return visible


def hip_setting(environment: Mapping[str, str]) -> tuple[str, str] | None:
    """The variable that HIP reads and its text, None where it lists every GPU: CUDA's stands in for an empty one of its own.

    Quotes around the whole are no part of it, and a variable that is set to nothing is a blank, which names no GPU.

    Source: clr, rocclr/utils/flags.cpp, Flag::init and removeQuotes; GPU_DEVICE_ORDINAL is OpenCL's (rocdevice.cpp, IS_HIP).
    """
    for variable in ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        if variable in environment:
            text = environment[variable] or " "
            quoted = re.fullmatch(r' *"(.*)" *', text, re.DOTALL)
            text = quoted[1] if quoted else text
            if text:
                return variable, text
    return None


def _known(positions: Iterable[int | None]) -> list[int]:
    """The positions before the first None."""
    known: list[int] = []
    for position in positions:
        if position is None:
            break
        known.append(position)
    return known


def _only(positions: Iterable[int]) -> int | None:
    found = list(positions)
    return found[0] if len(found) == 1 else None


def _repeats(entries: Sequence[str] | Sequence[int]) -> bool:
    return len(set(entries)) < len(entries)


def _strtoul(entry: str) -> int:
    """The number that ``entry`` begins with, -1 where it begins with none."""
    number = re.match(r"[+-]?[0-9]+", entry.strip())
    return int(number[0]) if number else -1


def _strtol(token: str) -> int | None:
    """The number that the upper-case ``token`` is, in C's bases; None where it is none."""
    number = re.fullmatch(r"([+-]?)(?:0X([0-9A-F]+)|(0[0-7]*)|([1-9][0-9]*))", token)
    if not number:
        return None
    sign, hexadecimal, octal, decimal = number.groups()
    value = int(hexadecimal, 16) if hexadecimal else int(octal, 8) if octal else int(decimal)
    return -value if sign == "-" else value
