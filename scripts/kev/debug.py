# SPDX-License-Identifier: GPL-2.0
"""What is done in a guest with a debug kernel beside the tests, and judged afterwards.

Reports of KASAN, lockdep and the like are in the kernel log (dmesg.py). kmemleak has
to be asked; and an aid that is off reports nothing, so each has to show that it is on.
"""

import dataclasses
import re

from kev import boot

#: KASAN's shadow is where the features of the CPU say, which the boot CPU forgets while it
#: finds them out; an interrupt then meets "wild" memory, unless the tables have four levels.
PARAMETERS = ("no5lvl",)

KMEMLEAK = "/sys/kernel/debug/kmemleak"
#: kmemleak takes no object for a leak that is younger than 5 seconds.
AGE = 6

#: The first scan after an object was made only takes its checksum: two for a verdict.
#: What booting left behind is found, and cleared, before the tests. From then on
#: nothing scans but this, so that all leaks are in one report.
BEFORE = f"""\
kmemleak={KMEMLEAK}
scan() {{
	for i in 1 2; do
		echo "kmemleak scan $i"
		sleep {AGE}
		echo scan >$kmemleak || return 1
	done
}}
[ -e $kmemleak ] || mount -t debugfs debugfs /sys/kernel/debug
echo scan=off >$kmemleak && scan && echo clear >$kmemleak
echo $? >kmemleak.before
"""
AFTER = """\
scan && cat $kmemleak >kmemleak
echo $? >kmemleak.after
cat /proc/lockdep_stats >lockdep_stats
"""

#: What an aid writes to the log when it starts.
STARTS = {
    "KASAN": "KernelAddressSanitizer initialized",
    "lockdep": "Lock dependency validator:",
    "kmemleak": "Kernel memory leak detector initialized",
}
KCSAN_STARTS = {"KCSAN": "kcsan: enabled early"}
#: KCSAN's report, which names the functions that race; and those that are of kevent, or are C
#: on behalf of Rust, which itself is not instrumented.
KCSAN_REPORT = "BUG: KCSAN: "
KEVENTS = re.compile(r"kevent|rust_helper_")
#: kmemleak's count of what it found; the report itself is judged.
COUNT = re.compile(r"kmemleak: \d+ new suspected memory leaks")


def leaks(report):
    """A line for each object of a kmemleak report, those of kevent first."""
    found = []
    for text in re.split(r"^(?=unreferenced )", report, flags=re.M):
        if not text.strip():
            continue
        head, *rest = text.rstrip().split("\n")
        comm = next((line.strip() for line in rest if line.startswith("  comm ")), "")
        at = next((i for i, line in enumerate(rest) if line.startswith("  backtrace")), len(rest))
        frames = [line.strip() for line in rest[at + 1:]]
        named = [frame for frame in frames if "kevent" in frame]
        found.append((not named, f"{head.rstrip(':')}: {comm}: " + " < ".join(
            (named or frames or ["no backtrace"])[:4])))
    return [line for _, line in sorted(found, key=lambda x: x[0])]


def kmemleak(folder):
    """Why the memory is not known to be clean; empty if it is."""
    for when in ("before", "after"):
        status = boot.read(folder / f"kmemleak.{when}").strip()
        if status != "0":
            return [f"no scan {when} the tests: " + (f"exit status {status}; is kmemleak off?"
                                                     if status else "the guest did not get there")]
    found = leaks(boot.read(folder / "kmemleak"))
    return found and [*found, f"see {folder}/kmemleak"]


def missing(folder, starts):
    """The aids that did not start, so that they could not have found anything."""
    log = boot.read(folder / "dmesg")
    return [f"{name} did not start: the log has no \"{text}\""
            for name, text in starts.items() if text not in log]


def aids(folder):
    """The aids of the debug kernel that were not on."""
    found = missing(folder, STARTS)
    if not re.search(r"^\s*debug_locks:\s+1$", boot.read(folder / "lockdep_stats"), re.M):
        found.append("lockdep was turned off, or the guest did not get to the end "
                     f"(debug_locks in {folder}/lockdep_stats)")
    return found


def races(result):
    """The Result without those reports of KCSAN that kevent has no part in; how many they are."""
    others = [p for p in result.problems if KCSAN_REPORT in p and not KEVENTS.search(p)]
    return dataclasses.replace(result, problems=[p for p in result.problems if p not in others]), \
        len(others)


def log_only(result):
    """The Result without kmemleak's counts."""
    return dataclasses.replace(result, problems=[p for p in result.problems
                                                 if not COUNT.search(p)])
