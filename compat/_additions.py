"""Variants that a distribution adds to operations of another: entry points of the group ``capgate.variants``.

    [project.entry-points."capgate.variants"]
    "fp8_mqa_logits.mine" = "mypackage.variants:addition"       # the operation, and behind a dot any word

    addition = compat.Addition(compat.Variant("mine", "mypackage.kernel:kernel", requires=["wgmma"]), before="gluon_hopper")

The module that an entry point names is imported when the operation is first asked for its variants, so it should import little;
that of the variant's kernel is imported where the variant is chosen.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ._registry import entry_points
from .thirdparty import Raised, ask

if TYPE_CHECKING:
    from ._variant import Variant

ENTRY_POINTS = "capgate.variants"


class Addition:
    """A variant, and its place among those of an operation: before or after one of them, or ahead of all.

    Raises TypeError for what is no Variant, ValueError for two places.
    """

    def __init__(self, variant: "Variant[Any]", *, before: str | None = None, after: str | None = None) -> None:
        from ._variant import Variant

        if not isinstance(variant, Variant):
            raise TypeError(f"variant: got {type(variant).__name__}, needs a compat.Variant")
        if before is not None and after is not None:
            raise ValueError(f"before, after: got {before!r} and {after!r}, needs one of them at most")
        self.variant = variant
        self.before = before
        self.after = after


def additions_to(operation: str, failed: list[str]) -> Iterator[tuple[str, Addition]]:
    """What installed distributions add to an operation, each with its distribution's name, in the order of those.

    failed : gets, in words, what is no addition
    """
    unread: dict[str, str] = {}
    entries = [entry for entry in entry_points(ENTRY_POINTS, unread) if entry.name.partition(".")[0] == operation]
    failed += unread.values()
    for entry in sorted(entries, key=lambda entry: (_distribution(entry), entry.name)):
        found = ask(entry.load)
        if isinstance(found, Addition):
            yield _distribution(entry), found
        else:
            why = found.words if isinstance(found, Raised) else f"a {type(found).__name__}, needs a compat.Addition"
            failed.append(f"variant {entry.name} of {_distribution(entry)} ({entry.value}) is not added: {why}")


def _distribution(entry: Any) -> str:
    return str(entry.dist.name) if entry.dist is not None else "an unnamed distribution"
