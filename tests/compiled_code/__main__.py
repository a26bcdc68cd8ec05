"""What every kernel compiles to, saved before a change and after it, and compared instruction for instruction.

    python tests/compiled_code save FOLDER            # with the Triton that is installed, into FOLDER/its version
    python tests/compiled_code compare BEFORE AFTER   # 0: the same machine code; 1: it says where not

Nothing is executed, and no GPU is needed. Names of symbols and lines of the source do not count.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/, as pytest has it there
from compiled_code import comparing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    save = commands.add_parser("save", help="compile every kernel, and save its instructions")
    save.add_argument("folder", type=Path)
    save.add_argument("--target", action="append", help="such as cuda:90; may be repeated. Otherwise all that have tunings")
    save.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="compilers side by side (%(default)s)")
    save.add_argument("--only", default="", metavar="TEXT", help="calls whose names contain it")
    compare = commands.add_parser("compare", help="say where two saved folders differ")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "compare":
        return comparing.compare(arguments.before, arguments.after)
    from compiled_code import calls, saving  # these need torch and Triton

    return saving.save(arguments.folder, arguments.target or calls.TARGETS, arguments.workers, arguments.only)


if __name__ == "__main__":
    sys.exit(main())
