# SPDX-License-Identifier: GPL-2.0
"""Where the instructions of an event and of a change go: which functions, and which instructions.

tools/bench/plugin.c tells how often each instruction was executed in one repetition; here its
function is looked up in the kernel's symbols. That says why a row of scripts/bench is what it is.
"""

import bisect
import collections
import re

from kev import bench, build, config, setup, ui

#: (row of the program, side, title). The program makes 64 events, or changes, at a time.
PARTS = [
    ("marked", "producer", "A write to an eventfd"),
    ("marked", "consumer", "Its collection"),
    ("change", "producer", "Add"),
    ("modify", "producer", "Modify"),
    ("change", "consumer", "Delete"),
]
#: Addresses of programs are below.
KERNEL = 1 << 63
#: Functions with less than this, per event, are put together.
LEAST = 2.0
#: What is listed instruction by instruction: kevent, and how it watches files.
OURS = re.compile(r"\bkevent|poll_watch")


class Symbols:
    """The functions of a kernel, by address."""

    def __init__(self, lines):
        found = {}
        for line in lines:
            address, kind, name = line.split(maxsplit=2)
            if kind in "tTwW":
                found.setdefault(int(address, 16), name)
        self.starts = sorted(found)
        self.names = [found[start] for start in self.starts]

    def name(self, address):
        if address < KERNEL:
            return "the program"
        at = bisect.bisect(self.starts, address) - 1
        return short(self.names[at]) if at >= 0 else "?"

    def range(self, address):
        """(start, end) of the function."""
        at = bisect.bisect(self.starts, address)
        return self.starts[at - 1], self.starts[at]


def short(name):
    """A demangled name without what is the same in most."""
    name = re.sub(r"\[[0-9a-f]{16}\]", "", name)
    name = re.sub(r"<(\w+::)*(\w+)[^>]*> as (\w+::)*(\w+)", r"\2 as \4", name)
    return re.sub(r"\b(kernel|core|fs|sync|time)::", "", name)[:60]


def parts_of(rows, log):
    """{(row, peer): {side: {address: times}}} of what the plugin printed for the rows."""
    groups, counts = [], None
    for m in re.finditer(r"^kevent-(marks|at) (\w+)(?: ([0-9a-f]+) (\d+)$)?", log, re.M):
        what, side = m.group(1), m.group(2)
        if what == "marks":
            if side == "producer":
                groups.append({})
            counts = groups[-1].setdefault(side, collections.Counter())
        else:
            counts[int(m.group(3), 16)] += int(m.group(4))
    bench.require_announced(groups, rows)
    found = {}
    for row, group in zip(rows, groups):
        name, number = row["name"].split(".")
        found[name, row["peer"]] = {
            side: {address: times / int(number) for address, times in counts.items()}
            for side, counts in group.items()}
    return found


def by_function(symbols, counts):
    """{function: instructions per event}"""
    found = collections.Counter()
    for address, times in counts.items():
        found[symbols.name(address)] += times
    return found


def table(symbols, parts):
    """Lines: for each part a row for each function, a column for each peer."""
    text = []
    for name, side, title in PARTS:
        found = {peer: by_function(symbols, sides[side])
                 for (row, peer), sides in parts.items() if row == name and sides.get(side)}
        functions = collections.Counter()
        for counts in found.values():
            functions |= counts
        shown = [function for function, most in functions.most_common() if most >= LEAST]
        lines = [[function, *(bench.number(counts[function]) for counts in found.values())]
                 for function in shown]
        rest = [sum(counts[f] for f in counts if f not in shown) for counts in found.values()]
        lines.append(["others", *map(bench.number, rest)])
        lines.append(["all", *(bench.number(sum(counts.values())) for counts in found.values())])
        text += ["", f"{title} (insns/event)", *bench.grid(["", *found], lines)]
    return text


def listing(symbols, parts, vmlinux):
    """Lines: the instructions of our functions that were executed, and how often for an event."""
    text = []
    for name, side, title in PARTS:
        counts = parts[name, "kevent"][side]
        ours = sorted({symbols.range(address) for address in counts
                       if address >= KERNEL and OURS.search(symbols.name(address))})
        for start, end in ours:
            code = ui.output([setup.toolchain().llvm / "llvm-objdump", "-d", "--no-show-raw-insn",
                              f"--start-address={start}", f"--stop-address={end}", vmlinux])
            text += ["", f"{title}: {symbols.name(start)}"]
            for m in re.finditer(r"^\s*([0-9a-f]{16}):\s*(.*)$", code, re.M):
                if times := counts.get(int(m.group(1), 16)):
                    text.append(f"{times:7.2f}  {m.group(1)[-8:]}  {m.group(2)}")
    return text


def command(args):
    """scripts/bench --where; gives the exit status."""
    if args.baseline or args.others or args.native or args.json:
        raise ui.Failure("--where goes with nothing else", "it prints no rows",
                         "scripts/bench --where")
    kernel = build.patched(args.tree)
    library = bench.plugin()
    if not library:
        raise ui.Failure("the plugin is needed to count instructions", "this QEMU does not take it",
                         "use Debian 12's qemu-system-x86")
    rows, log = bench.marked(kernel, library, "where")
    vmlinux = kernel.out / "vmlinux"
    symbols = Symbols(ui.output([setup.toolchain().llvm / "llvm-nm", "-n", "--demangle",
                                 vmlinux]).splitlines())
    parts = parts_of(rows, log)
    ui.say("\n".join(table(symbols, parts)))
    out = config.cache("bench") / "where.txt"
    out.write_text("\n".join(listing(symbols, parts, vmlinux)).lstrip() + "\n")
    ui.say(f"\nEach instruction of kevent's: {out}")
    return 0
