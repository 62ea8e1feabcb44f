# SPDX-License-Identifier: GPL-2.0
"""Count what kevent and its peers cost in guest instructions; compare, and draw it.

tools/bench/ has the program that runs in the guest, and what it counts. Here it is
built and booted, with one CPU and QEMU's -icount shift=0; its rows are printed as
tables, written as JSON, drawn, and compared with the baseline.
"""

import html
import json
import math
import re
import shlex
from pathlib import Path

from kev import arch, boot, build, config, series, setup, tree, ui

FOLDER = config.TOOLS / "bench"
BASELINE = FOLDER / "baseline.json"
CFLAGS = ["-O2", "-static", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-sign-compare",
          "-Wno-missing-field-initializers", "-D_GNU_SOURCE"]
#: How many idle sources there are at most, if not told otherwise.
IDLE = 100_000
#: How many boots the baseline is made of: where slabs, trees and hashes have a part in it, a row
#: is not the same in each.
BOOTS = 3
#: How much a row may grow, and how much is nothing, for rows of a few instructions.
TOLERANCE, SLACK = 0.01, 0.1
#: What varies by more than that from boot to boot, by slabs, trees and interrupts: not compared.
NOISY = re.compile(r"(add|modify|delete)\.1$"
                   r"|(write|loop|echo|trigger|move|full|grow|timer|others|bytes)\.")
#: Seconds: for all groups of rows; and more for each million of idle sources.
LIMIT, LIMIT_MILLION = 900, 3600
#: Tools whose version can change a number.
COMPILERS = ("rustc", "LLVM")
#: Versions of QEMU that have version 1 of the plugin interface.
PLUGIN_QEMU = ("4.2", "8.2")

#: (start of a row's name, title, what it is). In this order they are printed.
SECTIONS = [
    ("empty", "Calibration", "nothing at all"),
    ("getppid", "The smallest system call", "getppid"),
    ("write.", "A write that nobody watches", ".again: to a source that is ready already"),
    ("wake.", "Wake-up callback", "what a watcher adds to a write that makes the source ready"),
    ("merge.", "Merge", "what a watcher adds to a write to a source that is ready already, and "
     "whose event was not collected"),
    ("path.", "Whole path", "an event in a batch: write and collect, less the plain write (peer "
     "none); aio is told of the source again"),
    ("collect.user.", "Collection, in the program", "an event in a batch"),
    ("collect.kernel.", "Collection, in the kernel", "an event in a batch"),
    ("collect.", "Collection", "an event in a batch; .further: each but the first, of 512"),
    ("syscalls.", "System calls", "of the collection, for each event in a batch"),
    ("add.", "Add", "one registration, by itself or in bulk"),
    ("modify.", "Modify", "the same"),
    ("delete.", "Delete", "the same"),
    ("timer.", "Timers", "one of a batch. fire: from the interrupt, which is included, until the "
     "program goes on. epoll: with timerfds. past: expired when it is made"),
    ("trigger.", "Triggered by the program", "one of a batch. epoll: an eventfd; io_uring: a "
     "no-op; path: with the collection"),
    ("move.", "Move", "one registration to another queue, by itself or in bulk"),
    ("full.", "Behind a full ring", "a trigger of an event that waits, one of a batch; .again: "
     "merged into one that does"),
    ("grow.", "Grow", "from 512 slots to 1024, while so many events are unclaimed"),
    ("bytes.", "Memory", "for a registration, of 8192; registration: slab and vmalloc; all: with "
     "the queue itself. The kernel does not charge aio's to anybody"),
    ("loop.", "Event loop", "as libevent's bench.c: pipes.active.writes; an event, with its read "
     "and its write"),
    ("echo.", "Echo over TCP", "a request, on so many connections, client and server"),
    ("idle.", "Idle sources", "an event of a batch of 64, less the plain write, beside so many "
     "sources to which nothing happens"),
    ("insns.", "Counted by the plugin", "per event of a batch: instructions of the write and of "
     "the collection"),
    ("locked.", "Locked instructions", "the same"),
    ("lines.", "Distinct cache lines of data", "the same; shared: written by one of the two, "
     "touched by the other"),
    ("others.", "Programs without kevent", "one call each"),
]


# ---- building and booting ----------------------------------------------------

def program():
    """Build the program that runs in the guest."""
    out = config.cache("bench") / "kevent-bench"
    sources = sorted(FOLDER / name for name in ("bench.c", "peers.c"))
    ui.run([setup.toolchain().llvm / "clang", *CFLAGS, "-I", config.CHECKOUT / "rust/include/uapi",
            "-o", out, *sources], "bench: building it", config.log("bench-build"))
    return out


def plugin():
    """Build the plugin; None if this QEMU does not take it."""
    version = setup.version_of("qemu-system-x86_64")
    low, high = map(setup.number, PLUGIN_QEMU)
    if not low <= setup.number(version) < high:
        ui.say(f"  no cache lines and locked instructions: the plugin is not for QEMU {version}")
        return None
    out = config.cache("bench") / "plugin.so"
    ui.run(["gcc", "-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", "-shared", "-fPIC", "-o",
            out, FOLDER / "plugin.c"], "bench: building the plugin", config.log("bench-plugin"))
    return out


def rows_of(text):
    """The rows that the program printed."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def run(kernel, arguments=(), name="bench", idle=0, **options):
    """Boot, run the program; gives the rows."""
    command = [str(program()), *map(str, arguments)]
    memory = f"{1 + math.ceil(idle / 300_000)}G"
    result = boot.run(kernel, name, f"exec {shlex.join(command)}\n",
                      LIMIT + LIMIT_MILLION * idle // 1_000_000, icount=True, memory=memory,
                      title=f"{name}: boot and run", state=last_row, **options)
    result.require("the benchmark")
    result.require_clean()
    return rows_of(result.output)


def last_row(folder):
    found = re.findall(r'^\{"name": "([^"]+)", "peer": "([^"]+)"', boot.read(folder / "output"),
                       re.M)
    return " of ".join(found[-1]) if found else ""


def measure(kernel, idle):
    """All rows: of the program, and of the plugin."""
    rows = run(kernel, ["--idle", idle], idle=idle)
    if library := plugin():
        rows += plugin_rows(*marked(kernel, library, "marks"))
    return rows


def marked(kernel, library, group):
    """The rows that the program announced, and what the plugin printed."""
    log = Path(f"{library}.log")
    log.unlink(missing_ok=True)
    rows = run(kernel, ["--reps", 20, group], f"bench-{group}", plugin=library)
    return rows, boot.read(log)


def require_announced(counted, announced):
    """A Failure unless there is a count for each row."""
    if len(counted) != len(announced) or not counted:
        raise ui.Failure("the plugin did not count what the program announced",
                         f"{len(counted)} counts for {len(announced)} rows")


def plugin_rows(announced, log):
    """Rows of what the plugin printed, in the order in which the program announced it."""
    found = [(m.group(1), {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", m.group(2))})
             for m in re.finditer(r"^kevent-marks (\w+) (.*)$", log, re.M)]
    require_announced(found[::2], announced)
    require_announced(found[1::2], announced)
    rows = []
    for at, row in enumerate(announced):
        batch = int(row["name"].split(".")[1])
        for side, counts in found[2 * at:2 * at + 2]:
            for what, value in counts.items():
                if (what, side) != ("shared", "consumer") and what not in ("loads", "stores"):
                    name = "lines.shared" if what == "shared" else f"{what}.{side}"
                    rows.append(fixed(f"{name}.{batch}", row["peer"], f"{what}/event"
                                      if what != "shared" else "lines/event", value / batch))
    return rows


def fixed(name, peer, unit, value):
    """A row of something that was counted once."""
    value = round(value, 2)
    return {"name": name, "peer": peer, "unit": unit, "min": value, "median": value,
            "mode": value, "hits": 1}


# ---- tables ------------------------------------------------------------------

def section_of(name):
    """The index of the section a row is in: that with the longest start."""
    fitting = [i for i, (start, _, _) in enumerate(SECTIONS) if name.startswith(start)]
    return max(fitting, key=lambda i: len(SECTIONS[i][0]), default=len(SECTIONS))


def number(value):
    places = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{places}f}" if value else "0"


def grid(head, lines):
    """Lines of text, of cells in columns; the first is left-aligned."""
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    return ["  ".join(cell.ljust(width) if not i else cell.rjust(width)
                      for i, (cell, width) in enumerate(zip(line, widths))).rstrip()
            for line in [head, *lines]]


def table(rows):
    """The minimum of each row, a column for each peer, a part for each section."""
    text, parts = [], {}
    for row in rows:
        parts.setdefault(section_of(row["name"]), []).append(row)
    for section in sorted(parts):
        _, title, what = [*SECTIONS, ("", "Other", "")][section]
        part = parts[section]
        peers = list(dict.fromkeys(row["peer"] for row in part))
        names = list(dict.fromkeys(row["name"] for row in part))
        cells = {(row["name"], row["peer"]): row for row in part}
        lines = [[name, *(number(cells[name, peer]["min"]) if (name, peer) in cells else "-"
                          for peer in peers)] for name in names]
        text += ["", f"{title} ({part[0]['unit']}): {what}", *grid(["", *peers], lines)]
    return "\n".join(text)


NOTES = """
Guest instructions under QEMU's -icount shift=0, one CPU: the smallest of 200 repetitions; the JSON
has median, mode and how many gave the mode. Counts of work, not time: caches, branch prediction
and waiting for other CPUs are not in them."""


# ---- JSON and the baseline -----------------------------------------------------

def write_json(path, rows):
    """An array, with one row a line."""
    path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


def tools():
    """The versions that the numbers depend on."""
    return {name: version for name, version in setup.toolchain().versions if name in COMPILERS}


def write_baseline(boots):
    """Write the rows that are ours; `high` is the most that the minimum was in a boot."""
    kept = []
    for row in filter(watched, boots[0]):
        same = [other["min"] for rows in boots for other in rows
                if (other["name"], other["peer"]) == (row["name"], row["peer"])]
        kept.append({**row, "min": min(same), "high": max(same)})
    BASELINE.write_text(json.dumps({"tools": tools()})[:-1] + ', "rows": [\n'
                        + ",\n".join(map(json.dumps, kept)) + "\n]}\n")
    ui.say(f"baseline: {len(kept)} rows in {BASELINE}")


def watched(row):
    """Is it kevent's own cost, and the same in each boot?"""
    return row["peer"].startswith("kevent") and not NOISY.match(row["name"])


def baseline():
    """What the baseline has: its rows, and the tools that it was made with."""
    if not BASELINE.exists():
        raise ui.Failure("there is no baseline", f"{BASELINE} is missing",
                         "scripts/bench --baseline")
    found = json.loads(BASELINE.read_text())
    return found["rows"], found["tools"]


def regressions(old, new):
    """What is worse in the rows `new` than in `old`, or missing."""
    found = {(row["name"], row["peer"]): row for row in new}
    problems = []
    for row in old:
        name = f"{row['name']} of {row['peer']}"
        now = found.get((row["name"], row["peer"]))
        if not now:
            problems.append(f"{name}: not measured any more")
        elif now["min"] > row["high"] * (1 + TOLERANCE) + SLACK:
            more = f" (+{100 * (now['min'] / row['high'] - 1):.1f} %)" if row["high"] > 0 else ""
            problems.append(f"{name}: {row['high']:g} -> {now['min']:g} {row['unit']}{more}")
    return problems


# ---- drawing -----------------------------------------------------------------

COLOURS = ["#c0392b", "#e67e22", "#8e6b3e", "#2c7fb8", "#1a4f8b", "#2e8b57", "#7bb661", "#777777"]
WIDTH, HEIGHT, LEFT, BOTTOM, RIGHT, TOP = 760, 440, 70, 50, 170, 40


def points(rows, start):
    """{peer: [(number at the end of the name, minimum)]} of the rows that start so."""
    found = {}
    for row in rows:
        match = re.fullmatch(re.escape(start) + r"(\d+)", row["name"])
        if match and row["peer"] != "none":
            found.setdefault(row["peer"], []).append((int(match.group(1)), row["min"]))
    return found


def svg(title, x_title, y_title, lines):
    """A drawing of {name: [(x, y)]}, both axes logarithmic."""
    xs = [x for line in lines.values() for x, _ in line]
    ys = [max(y, 1) for line in lines.values() for _, y in line]
    low_x, high_x = math.log10(min(xs)), math.log10(max(xs))
    low_y, high_y = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))

    def at(x, y):
        return (LEFT + (math.log10(x) - low_x) / ((high_x - low_x) or 1) * (WIDTH - LEFT - RIGHT),
                HEIGHT - BOTTOM - (math.log10(max(y, 1)) - low_y) / ((high_y - low_y) or 1)
                * (HEIGHT - TOP - BOTTOM))

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
           'font-family="sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
           f'<text x="{LEFT}" y="22" font-size="15">{title}</text>',
           f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">'
           f"{x_title}</text>",
           f'<text transform="translate(16 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
           f"{y_title}</text>"]
    for x in sorted(set(xs)):
        px, _ = at(x, 1)
        out.append(f'<path d="M{px:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#eee"/>'
                   f'<text x="{px:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:,}'
                   "</text>")
    for power in range(low_y, high_y + 1):
        for factor in (1, 2, 5):
            y = factor * 10 ** power
            if y <= 10 ** high_y:
                _, py = at(1, y)
                out.append(f'<path d="M{LEFT} {py:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
                           f'<text x="{LEFT - 6}" y="{py + 4:.1f}" text-anchor="end">{y:,}</text>')
    # Names beside the ends of their lines, kept apart.
    ends = sorted((at(*line[-1])[1], name) for name, line in lines.items())
    place = {}
    for py, name in ends:
        place[name] = max(py, max(place.values(), default=0) + 14)
    for (name, line), colour in zip(lines.items(), COLOURS):
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (at(x, y) for x, y in line))
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>'
                for px, py in (at(x, y) for x, y in line)]
        out.append(f'<text x="{WIDTH - RIGHT + 10}" y="{place[name] + 4:.1f}" fill="{colour}">'
                   f"{html.escape(name)}</text>")
    return "\n".join([*out, "</svg>", ""])


def draw(rows, folder):
    """The two drawings, as far as there are rows for them; gives their files."""
    written = []
    for file, start, title, x_title in (
            ("batch.svg", "path.", "An event, from the write until it is collected, less the "
             "plain write", "events in a batch"),
            ("idle.svg", "idle.", "The same, in a batch of 64, beside idle sources",
             "idle sources")):
        lines = points(rows, start)
        if lines:
            (folder / file).write_text(svg(title, x_title, "guest instructions per event", lines))
            written.append(folder / file)
    return written


# ---- what it costs those who do not use it -------------------------------------

#: Kernels that are compared, and what is subtracted from the others.
WITHOUT = "without the series"
#: System calls are found by a tree of comparisons, which the compiler arranges anew when there are
#: three more: that takes so many instructions more, or less, for the same call.
DISPATCH = 2


def other_kernels(user_tree):
    """{what it is: kernel}, all built in one place."""
    base = tree.get(user_tree, series.applies)
    tip = series.applied(base)
    with build.other_commits(base) as (source, off):
        for name, commit, fragment in ((WITHOUT, base.commit, off), ("CONFIG_KEVENT=n", tip, off),
                                       ("CONFIG_KEVENT=y", tip, build.FRAGMENT)):
            label = "others-" + re.sub(r"\W+", "-", name).lower()
            tree.checkout(source, commit)
            yield name, build.kernel(source, build.out_folder(base, label),
                                     build.fragments(arch.X86_64, fragment), label)


def others(user_tree):
    """The rows of programs that do not use kevent, in those kernels: {kernel: rows}."""
    found = {}
    for name, kernel in other_kernels(user_tree):
        found[name] = run(kernel, ["empty", "others"], "bench-others")
    return found


def others_table(found):
    """Lines: a row, and how much more each kernel takes than that without the series."""
    base = {row["name"]: row["min"] for row in found[WITHOUT]}
    kernels = [name for name in found if name != WITHOUT]
    now = {kernel: {row["name"]: row["min"] for row in found[kernel]} for kernel in kernels}
    lines = [[name, number(value), *(f"{now[kernel][name] - value:+.0f}" for kernel in kernels)]
             for name, value in base.items()]
    return grid(["instructions", WITHOUT, *kernels], lines)


def others_differ(found, kernel="CONFIG_KEVENT=n"):
    """Rows in which that kernel takes more than the one without the series, beyond DISPATCH."""
    base = {row["name"]: row["min"] for row in found[WITHOUT]}
    return [f"{row['name']}: {base[row['name']]:g} -> {row['min']:g} insns"
            for row in found[kernel] if row["min"] > base[row["name"]] + DISPATCH]


# ---- the command ---------------------------------------------------------------

def native():
    """The rings on two real cores of this machine, side by side."""
    installed = setup.toolchain()
    ui.run([installed.rust_tool("cargo"), "build", "--release", "--locked", "-p", "ring-bench"],
           "bench: building ring-bench", config.log("ring-bench-build"),
           cwd=config.TOOLS, env=installed.cargo_environment())
    ui.say(ui.output([config.CARGO_TARGET / "release/ring-bench"]).rstrip())


def command(args):
    """scripts/bench; gives the exit status."""
    if args.baseline and (args.others or args.native or args.inline or args.idle != IDLE):
        raise ui.Failure("--baseline goes with nothing else",
                         "scripts/test measures as it does alone", "scripts/bench --baseline")
    if args.native and args.json:
        raise ui.Failure("--native writes no JSON", "its numbers are of this machine alone",
                         "scripts/bench --native")
    if args.native:
        native()
        return 0
    if args.others:
        found = others(args.tree)
        ui.say("\n" + "\n".join(others_table(found)) + "\n" + NOTES)
        if args.json:
            write_json(Path(args.json), [{**row, "kernel": name} for name, rows in found.items()
                                         for row in rows])
        return 0
    kernel = build.patched(args.tree, "inline" if args.inline else "")
    rows = measure(kernel, args.idle)
    ui.say(table(rows))
    ui.say(NOTES)
    for path in draw(rows, config.cache("bench")):
        ui.say(f"drawn: {path}")
    if args.json:
        write_json(Path(args.json), rows)
    if args.baseline:
        write_baseline([rows, *(measure(kernel, IDLE) for _ in range(BOOTS - 1))])
    return 0
