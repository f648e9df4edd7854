"""Run every command of the README as it is written: `python -m tests.studies.readme_commands --log readme.jsonl`, in a clone.

The files and models that commands name (alpaca.jsonl, models/target, ...) must be in the clone's folder. The log has one line
per command: its exit status, its seconds, the last line it printed. Commands in the log are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from bench.records import checkout
from tests.support import ROOT

PROGRAMS = ("make", "pytest", "specheat")


def commands(document: str) -> list[str]:
    """Return the commands in indented blocks, without comments, each on one line."""
    blocks = "\n".join(line.strip() for line in document.splitlines() if line.startswith("    "))
    lines = re.sub(r"\s*\\\n\s*", " ", blocks).splitlines()
    typed = (re.sub(r"\s+#.*", "", line) for line in lines)
    return [line for line in typed if line.partition(" ")[0] in PROGRAMS]


def run(command: str, printed: Path) -> dict[str, object]:
    """Run a command in a shell, with the programs of this environment first; what it prints goes to a file."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    began = time.monotonic()
    with printed.open("w") as file:
        status = subprocess.call(
            command, shell=True, cwd=ROOT, env=os.environ | {"PATH": path}, stdout=file, stderr=subprocess.STDOUT
        )
    last = [line for line in printed.read_text(errors="replace").splitlines() if line.strip()][-1:]
    return {
        "command": command,
        "status": status,
        "seconds": round(time.monotonic() - began, 1),
        "last_line": "".join(last),
        "commit": checkout.commit()["harness_commit"],
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.studies.readme_commands", description=__doc__.split("\n\n")[0])
    parser.add_argument("--log", type=Path, required=True, help="JSON lines; commands in it are not run again")
    parser.add_argument("--only", default="", metavar="REGEX", help="only commands that match")
    parser.add_argument("--skip", default="$^", metavar="REGEX", help="commands that match are left out")
    parser.add_argument(
        "--printed", type=Path, default=Path("readme-output"), metavar="DIR", help="folder for what commands print"
    )
    args = parser.parse_args()
    args.printed.mkdir(parents=True, exist_ok=True)
    done = args.log.read_text().splitlines() if args.log.exists() else []
    known = {json.loads(line)["command"] for line in done}
    for number, command in enumerate(commands((ROOT / "README.md").read_text()), start=1):
        if command in known or not re.search(args.only, command) or re.search(args.skip, command):
            continue
        print(f"{number}: {command}", flush=True)
        outcome = run(command, args.printed / f"{number}.txt")
        print(f"   exit {outcome['status']} after {outcome['seconds']} s: {outcome['last_line']}", flush=True)
        with args.log.open("a") as log:
            log.write(json.dumps(outcome) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
