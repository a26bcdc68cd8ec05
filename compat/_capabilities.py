"""What a target makes of the table of capabilities: verdicts, whose reasons join what was needed and what was found."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from . import _probes
from ._probes import Finding
from .spelling import nearest
from .table import TABLE, Capability
from .targets import Target, base_label


class CapabilityError(RuntimeError):
    """Something was required that this Triton on this target cannot do; the message is the reason."""


class Verdict(NamedTuple):
    """Whether a capability holds, and why or why not. True in a boolean context when it holds."""

    available: bool
    reason: str

    def __bool__(self) -> bool:
        return self.available


_NAMES = tuple(TABLE)


class Capabilities:
    """What this Triton can do on one target; a snapshot that a kernel may keep.

    ``caps.gluon_cdna4`` is a bool, ``caps.why("gluon_cdna4")`` its reason, ``caps["gluon_cdna4"]`` both as a
    :class:`Verdict`. Verdicts are found when first read. Iterating gives the names in the table's order. Reading a flag
    works inside ``torch.compile(fullgraph=True)``, where it is a constant of the compiled graph.

    target : the target asked about
    disabled : capabilities that a switch takes away, each with the words that say which switch
    enabled : those that no hardware has shown and that a switch asks for all the same, alike
    """

    target: Target

    def __init__(
        self, target: Target, disabled: Mapping[str, str] | None = None, enabled: Mapping[str, str] | None = None
    ) -> None:
        self.target = target
        self._disabled = dict(disabled or {})
        self._enabled = dict(enabled or {})
        self._verdicts: dict[str, Verdict] = {}

    def __getitem__(self, name: str) -> Verdict:
        """The verdict on ``name``; KeyError lists the nearest names for one that is not in the table."""
        return _verdict(self, name)

    def __getattr__(self, name: str) -> bool:
        # Reached only until the first read: _verdict stores the flag as a plain attribute, which torch.compile can follow.
        if name.startswith("_"):
            raise AttributeError(name)
        return _flag(self, name)

    def why(self, name: str) -> str:
        """The reason behind a flag, whether it holds or not."""
        return self[name].reason

    def require(self, name: str) -> None:
        """Raise CapabilityError with the reason when ``name`` does not hold."""
        verdict = self[name]
        if not verdict:
            raise CapabilityError(f"{name}: {verdict.reason}")

    def __iter__(self) -> Iterator[str]:
        return iter(_NAMES)

    def __len__(self) -> int:
        return len(_NAMES)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *TABLE]

    def __repr__(self) -> str:
        return f"Capabilities({self.target})"

    def _judge(self, row: Capability) -> tuple[Verdict, bool]:
        """The verdict on a row, and whether it lasts: what a machine in trouble left unanswered is to be asked again."""
        if row.name in self._disabled:
            return Verdict(False, f"disabled by {self._disabled[row.name]}"), True
        if row.all_of:
            return self._judge_all(row)
        if row.probe is not None:
            finding = _probes.run(row.probe)
        elif row.package:
            finding = _probes.package(row.package)
        elif row.asks is not None:
            finding = _probes.run(row.asks, self.target)
        else:
            words = ""
            holds = self.target.is_gpu if row.archs == ("*",) else base_label(self.target.label) in row.archs
            if holds and row.unproven:
                holds = row.name in self._enabled
                words = f", enabled by {self._enabled[row.name]}" if holds else ""
            finding = Finding(holds, f"{self.target.label}{words}")
        return Verdict(finding.holds, f"{'' if finding.holds else f'needs {row.needs}: '}found {finding.found}"), finding.lasts

    def _judge_all(self, row: Capability) -> tuple[Verdict, bool]:
        verdicts = {need: self[need] for need in row.all_of if TABLE[need].kind != "both"}
        if all(verdicts.values()):  # a compiler is asked about what it may know only
            verdicts |= {need: self[need] for need in row.all_of if TABLE[need].kind == "both"}
        failing = [need for need, verdict in verdicts.items() if not verdict]
        lasts = all(need in self._verdicts for need in failing)
        said = failing or [need for need in verdicts if TABLE[need].kind != "both"]
        return Verdict(not failing, self._join({need: verdicts[need].reason for need in said})), lasts

    def joined(self, names: Iterable[str]) -> str:
        """The reasons of several capabilities in one line: the first of each kind, since the others follow from it."""
        return self._join({name: self.why(name) for name in names})

    def _join(self, reasons: Mapping[str, str]) -> str:
        first: dict[str, str] = {}
        for name in reasons:
            first.setdefault(TABLE[name].kind, name)
        return "; ".join(
            f"needs {name}: {reasons[name]}" if name in self._disabled else reasons[name] for name in first.values()
        )


def _verdict(capabilities: Capabilities, name: str) -> Verdict:
    verdicts = capabilities._verdicts
    if name not in verdicts:
        if name not in TABLE:
            raise KeyError(f"no capability {name!r}; {nearest(name, TABLE)}")
        verdict, lasts = capabilities._judge(TABLE[name])
        if not lasts:
            return verdict
        verdicts[name] = verdict
        capabilities.__dict__[name] = verdict.available
    return verdicts[name]


def _flag(capabilities: Capabilities, name: str) -> bool:
    if name not in TABLE:
        raise AttributeError(f"no capability {name!r}; {nearest(name, TABLE)}")
    return _verdict(capabilities, name).available


# What torch.compiler.assume_constant_result sets, without importing torch: a verdict does not change within a snapshot.
_verdict._dynamo_marked_constant = True  # type: ignore[attr-defined]
_flag._dynamo_marked_constant = True  # type: ignore[attr-defined]
