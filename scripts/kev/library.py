# SPDX-License-Identifier: GPL-2.0
"""What programs get in tools/: the C header, examples, man pages and kevent-stat, tried out.

Everything is compiled on the host and run in one guest; each run is a Case. For another
architecture that is what is in C, and needs no more than busybox.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from kev import boot, config, cross, setup, ui

MAN = config.TOOLS / "man"
FLAGS = ["-O2", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{config.TOOLS}/c",
         f"-I{config.CHECKOUT}/rust/include/uapi"]
#: Seconds for one program in the guest.
CASE_LIMIT = 120
TRACEFS = "/sys/kernel/tracing"


@dataclass(frozen=True)
class Case:
    """A shell command for the guest, and the pattern that all of its output has to match."""
    name: str
    command: str
    pattern: str


# ---- compiling ---------------------------------------------------------------

def pages():
    return sorted(MAN.iterdir())


def example_of(page):
    """The program in the EXAMPLES of a man page, which is in man(7)."""
    section = re.search(r"^\.SH EXAMPLES\n(.*?)^\.SH ", page, re.M | re.S)
    block = section and re.search(r"^\.EX\n(.*?)^\.EE\n", section.group(1), re.M | re.S)
    if not block:
        return ""
    escapes = {r"\e": "\\", r"\-": "-", r"\&": ""}
    return re.sub(r"\\[e&-]", lambda found: escapes[found.group()], block.group(1))


def compilers(machine, tally):
    """{language: command} of all that kevq.h is for; c++ or c, with -32 for 32 bits."""
    if machine.native:
        whys = {"c": "", "c++": "", "c-32": setup.why_not_32()}
        found = {"c": ["gcc"], "c++": ["g++", "-x", "c++"], "c-32": ["gcc", *setup.flags_32()]}
    else:
        bits = {"c": 64, "c-32": 32}
        whys = {name: cross.why_not_programs(machine, bits[name]) for name in bits}
        found = {name: [*cross.compiler(machine, bits[name]), "-static"] for name in bits}
    for name, why in whys.items():
        if why:
            tally.skips(f"{name} programs: {why}")
    return {name: command for name, command in found.items() if not whys[name]}


def standard(language, gnu=False):
    """The compiler's option for C11 or C++17."""
    return f"-std={'gnu' if gnu else 'c'}" + ("++17" if language == "c++" else "11")


def compiled(command, source, program):
    """Compile a program; gives its problems."""
    done = ui.output(["sh", "-c", 'exec "$@" 2>&1', "sh", *command, *FLAGS, "-o", program,
                      source], check=False)
    if Path(program).exists() and not done.strip():
        return []
    return done.strip().splitlines() or [f"{command[0]} made no {program}"]


def compile_all(tally, machine, folder):
    """Compile everything that is in C, in each language that it claims to be; gives those."""
    languages = compilers(machine, tally)
    for source in sorted((config.TOOLS / "c/examples").glob("*.c")):
        problems = []
        for language, command in languages.items():
            problems += compiled([*command, standard(language)], source,
                                 folder / f"{source.stem}-{language}")
        tally.judge(f"{source.name} is {', '.join(languages)}", problems)
    for language, command in languages.items():
        tally.judge(f"the tests of kevq.h compile as {language}", compiled(
            [*command, standard(language, gnu=True)], config.TOOLS / "c/tests/guest.c",
            folder / f"guest-{language}"))
    if machine.native and "c-32" in languages:
        # There may be no 32-bit headers of C++, which kevq.h does not need.
        header = folder / "header.c"
        header.write_text('#include "kevq.h"\n')
        tally.judge("kevq.h is C++ with 32 bits", compiled(
            [*languages["c++"], *setup.flags_32(), standard("c++"), "-c"], header,
            folder / "header.o"))
    if "c" not in languages:
        return []
    command = [*languages["c"], standard("c", gnu=True)]
    tally.judge("what kevent-stat looks at compiles",
                compiled(command, config.TOOLS / "stat/tests/known.c", folder / "known"))
    for page in pages():
        source = folder / f"{page.name}.c"
        source.write_text(example_of(page.read_text()))
        tally.judge(f"the example of {page.stem}({page.suffix[1:]}) compiles",
                    compiled(command, source, folder / page.name))
    return list(languages)


def rust_programs():
    """Build the examples of the Rust library and kevent-stat; gives the folder."""
    tools = setup.toolchain()
    ui.run([tools.rust_tool("cargo"), "build", "--release", "--locked", "-p", "kevent",
            "-p", "kevent-stat", "--bins", "--examples"], "library: building tools/",
           config.log("library-build"), cwd=config.TOOLS, env=tools.cargo_environment(),
           counts=r"^\s+Compiling", unit="crates",
           do=f"cd {config.TOOLS} && cargo build --release --examples")
    return config.CARGO_TARGET / "release"


# ---- what needs no guest -----------------------------------------------------

def lint(tally):
    for page in pages():
        text = ui.output(["sh", "-c", 'mandoc -T lint -W warning "$1" 2>&1', "sh", page],
                         check=False)
        tally.judge(f"mandoc on {page.name}", text.splitlines())


def unknown(tally, folder, languages):
    """On a kernel without kevent, programs say so. (This machine may be one that has it.)"""
    for language in languages:
        text = ui.output(["sh", "-c", f"{shlex.quote(str(folder))}/timer-{language} 2>&1; echo $?"],
                         check=False)
        good = (r"kevent: (Function not implemented|Operation not permitted)\n1\n"
                r"|three times, at least\n0\n")
        tally.judge(f"without kevent the program says so, in {language}",
                    [] if re.fullmatch(good, text) else text.splitlines())


# ---- in the guest ------------------------------------------------------------

def cases(folder, languages):
    """The C programs that are run in the guest."""
    c, found = shlex.quote(str(folder)), []
    for language in languages:
        found += [
            Case(f"guest-{language}", f"{c}/guest-{language}", r"1\.\.\d+\n(.*\n)+"),
            Case(f"timer-{language}", f"{c}/timer-{language}", "three times, at least\n"),
            Case(f"user-{language}", f"{c}/user-{language}", "4000 pieces of work were done\n"),
            Case(f"level-{language}", f"printf 'hello world!' | {c}/level-{language}",
                 "12 bytes\n"),
        ]
    return found + [
        Case("kevent_init.2", f"{c}/kevent_init.2", r"128 slots of \d+ bytes\n"),
        Case("kevent_ctl.2", f"echo | {c}/kevent_ctl.2", "2 applied\n0: Success\n1: Success\n"),
        Case("kevent_getevents.2", f"{c}/kevent_getevents.2", "expired three times, at least\n"),
        Case("kevent.7", f"echo hello | {c}/kevent.7", "6 bytes\n"),
    ]


def native_cases(folder, rust, languages):
    """Those that need Rust, or more than busybox in the guest."""
    c, rust = shlex.quote(str(folder)), shlex.quote(str(rust))
    stat = f"{rust}/kevent-stat"
    found = [Case("stat-none", stat, "no process has a kevent queue\n")]
    for port, language in enumerate(languages, 7700):
        found.append(Case(
            f"echo-{language}", f"{c}/echo-{language} {port} & bash -c '\n"
            f"until exec 3<>/dev/tcp/127.0.0.1/{port}; do sleep 0.1; done 2>/dev/null\n"
            f"exec 4<>/dev/tcp/127.0.0.1/{port}; echo one >&3; echo two >&4\n"
            "read -u 4 b; read -u 3 a; echo $a $b'; kill $!", "one two\n"))
    return found + [
        Case("rust-stdin", f"echo hello | {rust}/examples/stdin",
             "source 1 is ready: 0x1?1\n6 bytes\nsource 1 is ready: 0x10\n"),
        Case("rust-sources", f"(echo hello; sleep 10; echo bye) | {rust}/examples/sources",
             r"(?=(.*\n)*the helper says 42\n)(?=(.*\n)*\d+ s\n)(?=(.*\n)*6 bytes\n)(.*\n)+"),
        Case("stat", f"{c}/known >known.ready & pid=$!\n"
             "until grep -q ready known.ready; do sleep 0.1; done\n"
             f"echo == one; {stat} $pid\necho == all; {stat}\n"
             f"echo == rates; {stat} $pid --interval 2 --count 2\n"
             f"echo == stopped; timeout -s INT 3 {stat} --interval 0.5 >/dev/null; echo $?\n"
             f"echo == left; ls {TRACEFS}/instances\n"
             f"echo == wrong; {stat} 1; {stat} 999999; kill $pid", r"(.*\n)+"),
    ]


def script(todo):
    """The shell text that runs the cases; each leaves NAME.out and NAME.status."""
    parts = ["ip link set lo up\n"]
    for case in todo:
        parts.append(f"echo {case.name}\n"
                     f"timeout -k 5 {CASE_LIMIT} sh -c {shlex.quote(case.command)} "
                     f">{case.name}.out 2>&1\necho $? >{case.name}.status\n")
    return "".join(parts)


def problems_of(case, text, status):
    """What is wrong with a case: [(name of the test, problems)]."""
    show = text.splitlines()[-15:]
    guest = case.name.startswith("guest-")      # it leaves with 1 if one of its tests failed
    if status != "0" and not (guest and status == "1"):
        return [(case.name, [f"exit status {status or '?'}", *show])]
    if not re.fullmatch(case.pattern, text):
        return [(case.name, ["this is not what it has to print:", *show])]
    if guest:
        planned = int(re.match(r"1\.\.(\d+)", text).group(1))
        lines = re.findall(r"^(ok|not ok) \d+ (\w+)", text, re.M)
        missing = len(lines) != planned or (status == "0") != all(v == "ok" for v, _ in lines)
        return [(f"{case.name}: {name}", [] if verdict == "ok" else show)
                for verdict, name in lines] + \
               ([(case.name, ["tests are missing", *show])] if missing else [])
    if case.name == "stat":
        return stat_problems(text)
    return [(case.name, [])]


#: The queues of known.c, as kevent-stat shows them: PID, FD and rates left out.
STILL = r" known +\d+ +4  overflow,level +9 +4 +2 +1"
STILL_STATES = "file: 1 ready; timer: 1 idle; user: 1 disabled, 4 posted, 2 waiting"
BUSY = r" known +\d+ +1  \S+ +2 +\d+ +\d+ +0"


def stat_problems(text):
    """What is wrong with what kevent-stat has printed: [(name of the test, problems)]."""
    parts = dict(re.findall(r"^== (\w+)\n((?:(?!== ).*\n)*)", text, re.M))
    tests = []

    def test(name, part, *patterns):
        shown = parts.get(part, "")
        missing = [f"missing: {p}" for p in patterns if not re.search(p, shown, re.M)]
        tests.append((name, missing and [*missing, *shown.splitlines()]))

    for part in ("one", "all"):
        test(f"kevent-stat, {part}: registrations, states and flags", part,
             STILL + "$", f"^ +{STILL_STATES}$", BUSY + "$")
    # A rate of nothing is "0"; in the other queue all but the level-triggered happens.
    rate = r" +(?!0(?: |$))[\d.]+"
    test("kevent-stat: rates of each queue", "rates",
         r"post/s +merge/s +collect/s +overflow/s +cancel/s$", STILL + r"( +0){5}$",
         BUSY + 5 * rate + "$")
    again = len(re.findall(r"^ *PID ", parts.get("rates", ""), re.M))
    tests.append(("kevent-stat ends after --count", [] if again == 2 else [f"{again} tables"]))
    test("kevent-stat ends by SIGINT", "stopped", r"\A(0|124)\n\Z")
    test("kevent-stat leaves no trace buffer", "left", r"\A\Z")
    test("kevent-stat says what is wrong", "wrong", "process 1 has no kevent queue",
         "there is no process 999999")
    return tests


def run(tally, kernel, icount=False):
    """Compile and run everything; gives the boot.Result."""
    machine = kernel.machine
    setup.packages("library")
    folder = config.cache(machine.label("library"))
    for old in folder.iterdir():
        old.unlink()
    languages = compile_all(tally, machine, folder)
    todo = cases(folder, languages)
    if machine.native:
        lint(tally)
        unknown(tally, folder, languages)
        todo = native_cases(folder, rust_programs(), languages) + todo
    result = boot.run(kernel, "library", script(todo), CASE_LIMIT * len(todo), icount=icount,
                      silence=CASE_LIMIT + 60, title=f"{machine.label('library')}: boot and run",
                      state=lambda at: (boot.read(at / "output").splitlines() or [""])[-1])
    for case in todo:
        text, status = (boot.read(result.folder / f"{case.name}.{kind}")
                        for kind in ("out", "status"))
        for name, problems in problems_of(case, text, status.strip()):
            tally.judge(name, problems)
    return result
