# SPDX-License-Identifier: GPL-2.0
"""Run all tests in named steps; the last line printed is the count."""

import argparse
import functools
import re
import shlex
import shutil
import sys
import tempfile
import time
import unittest
from pathlib import Path

from kev import (arch, behaviours, bench, boot, build, config, cross, debug, demo, kunit, library,
                 lint, litmus, series, setup, tree, ui)

#: Seconds for one cargo test command, for one selftest program in the guest, and
#: for the demo.
HOST_LIMIT = 1200
PROGRAM_LIMIT = 120
DEMO_LIMIT = 300
#: How much longer a program, and the boot, may take in the debug kernel; what kmemleak
#: may take to look for leaks, before and after; and the guest's memory.
DEBUG_SLOWNESS = 5
KMEMLEAK_LIMIT = 1200
DEBUG_MEMORY = "2G"
#: The selftests that are run in the debug kernel if not all of them are: those that are out
#: to break something.
HARSH = ("faults", "fuzz", "hostile", "lifetime", "storm")
#: The full figures of programs whose short form is among the selftests: what tells them how
#: much to do, and how long that may take, in seconds.
MANY = 10_000_000
STORM = f"KEVENT_STORM_EVENTS={MANY}"
FUZZ = f"KEVENT_FUZZ_CALLS={MANY}"
MANY_LIMIT = 4 * 3600
SHORT_DEMO = ["--connections", "50", "--requests", "20"]


class Tally:
    """Counts of one step."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def passes(self, count=1):
        self.passed += count

    def fails(self, what, count=1):
        self.failed += count
        ui.say(what if isinstance(what, ui.Failure) else f"  FAIL  {what}")

    def judge(self, name, problems):
        """One test: failed if there are problems."""
        if not problems:
            ui.say(f"  ok    {name}")
            return self.passes()
        more = [f"... and {len(problems) - 20} more"] if len(problems) > 20 else []
        self.fails("\n        ".join([name, *problems[:20], *more]))

    def skips(self, what):
        self.skipped += 1
        ui.say(f"  skip  {what}")

    def adds(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped

    def counts(self):
        text = f"{self.passed} passed, {self.failed} failed"
        return text + (f", {self.skipped} skipped" if self.skipped else "")


@functools.cache
def outcome(function, *args):
    """The result of a costly step, or its Failure; several test steps may need it."""
    try:
        return function(*args), None
    except ui.Failure as failure:
        return None, failure


def need(function, *args):
    value, failure = outcome(function, *args)
    if failure:
        raise failure
    return value


def machine_of(options):
    return options.arch or arch.X86_64


def patched(options, debugging=""):
    return need(build.patched, options.tree, debugging, machine_of(options))


# ---- the steps ---------------------------------------------------------------

def step_setup(tally, options):
    """packages, tool chain, virtme-ng"""
    setup.everything()
    for machine in arch.ALL.values():
        if not machine.native:
            cross.everything(machine)
    tally.passes()


def step_scripts(tally, options):
    """unit tests of these scripts"""
    setup.packages("tree")
    setup.packages("build")
    suite = unittest.defaultTestLoader.discover(str(Path(__file__).parent / "tests"),
                                                top_level_dir=str(config.SCRIPTS))
    with open(config.log("scripts"), "w") as log:
        result = unittest.TextTestRunner(log, verbosity=2).run(suite)
    bad = result.failures + result.errors
    for test, trace in bad:
        tally.fails(f"{test}: {trace.strip().splitlines()[-1]}")
    tally.skipped += len(result.skipped)
    tally.passes(result.testsRun - len(bad) - len(result.skipped))


def step_behaviours(tally, options):
    """the documentation names every selftest, and none that is not there"""
    tests, problems = behaviours.read()
    missing, unknown = behaviours.compare(tests, behaviours.DOCUMENT.read_text())
    tally.judge("every selftest can be read, and is built",
                problems or ([] if tests else ["there is none"]))
    tally.judge("every selftest is in the documentation", missing)
    tally.judge("every name in the documentation is a selftest", unknown)


def cargo_test(tally, title, arguments, **extra):
    tools, log = setup.toolchain(), config.log(title.replace(" ", "-"))
    command = [tools.rust_tool("cargo"), "test", "--locked", *arguments]
    status = ui.run(command, f"host: {title}", log, cwd=config.TOOLS, check=False, limit=HOST_LIMIT,
                    env=tools.cargo_environment(**extra), counts=r"^test .*\.\.\. ", unit="tests")
    text = log.read_text(errors="replace")
    results = re.findall(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored",
                         text, re.M)
    passed, failed, ignored = (sum(int(x[i]) for x in results) for i in range(3))
    tally.passes(passed)
    tally.skipped += ignored
    for name in re.findall(r"^test (.*) \.\.\. FAILED", text, re.M):
        ui.say(f"  FAIL  {name}")
    tally.failed += failed
    if (status and not failed) or not passed:
        settings = "".join(f"{name}={shlex.quote(str(value))} " for name, value in extra.items())
        tally.fails(ui.Failure(title, ui.error_lines(log), f"cd {config.TOOLS} && {settings}"
                               + shlex.join(["cargo", *command[1:]]), log))


def step_host(tally, options):
    """cargo tests, the ring under loom, formatting"""
    if not (config.TOOLS / "Cargo.toml").exists():
        raise ui.Failure("there are no host tests", f"{config.TOOLS}/Cargo.toml is missing",
                         "git checkout tools")
    cargo_test(tally, "cargo test", [])
    cargo_test(tally, "loom", ["--release", "-p", "ring-tests"], RUSTFLAGS="--cfg loom",
               CARGO_TARGET_DIR=config.CARGO_TARGET / "loom")
    tools, base = setup.toolchain(), need(tree.get, options.tree, series.applies)
    style = config.cache("tmp") / ".rustfmt.toml"
    style.write_text(tree.git(base.repo, "show", "base:.rustfmt.toml"))
    for folder, arguments in (("rust", ["--config-path", style]), ("tools", ["--edition", "2021"])):
        files = [config.CHECKOUT / n for n in series.project_files(config.CHECKOUT, folder)
                 if n.endswith(".rs")]
        log = config.log(f"rustfmt-{folder}")
        log.write_text(ui.output([tools.rust_tool("rustfmt"), "--check", *arguments, *files],
                                 check=False) if files else "")
        tally.judge(f"rustfmt of {folder}/", sorted(set(
            re.findall(r"^Diff in (.*?)[: ]", log.read_text(), re.M)
        )) + ([] if files else [f"no Rust files in {folder}/"]))


def step_litmus(tally, options):
    """litmus tests: each barrier is enough, and without it something goes wrong"""
    found = {folder: litmus.tests(config.CHECKOUT / folder) for folder in litmus.MODELS}
    tally.judge("every letter of the kernel side has a litmus test",
                litmus.untested(config.CHECKOUT, found[litmus.KERNEL]))
    for folder, tests in found.items():
        tally.judge(f"{folder}: names, results and twins", litmus.inconsistent(tests))
    try:
        herd = litmus.herd7()
    except litmus.Missing as missing:
        return tally.skips(f"{sum(map(len, found.values()))} litmus tests: {missing.what}: "
                           f"{missing.why}; {missing.do}")
    config.log("litmus").unlink(missing_ok=True)
    kernel = litmus.kernel_model(need(tree.get, options.tree, series.applies))
    for folder, tests in found.items():
        models = litmus.MODELS[folder] or [kernel]
        wrong = {t.name: problems for t in tests if (problems := litmus.run(herd, models, t))}
        for name, problems in wrong.items():
            tally.judge(f"{folder}/{name}.litmus", problems)
        ui.say(f"  {'FAIL' if wrong else 'ok':5} {folder}: {len(tests) - len(wrong)} of "
               f"{len(tests)}, {sum(t.twin for t in tests)} of them without a barrier")
        tally.passes(len(tests) - len(wrong))


def step_kunit(tally, options):
    """KUnit tests of the abstractions and of the core, in a kernel that is a program (UML)"""
    kunit.step(tally, options.tree)


def step_series(tally, options):
    """patches apply, equal rust/ and selftests/, regenerate the same; checkpatch; drift is found"""
    base = need(tree.get, options.tree, series.applies)
    parts = series.check(base)
    for name, problems in parts:
        tally.judge(name, problems)
    if not parts[0][1]:
        tally.judge("a changed character is found", drift_test(base))


def drift_test(base):
    """Change one character in a copy of the checkout; the check must name the file."""
    with tempfile.TemporaryDirectory(dir=config.cache("tmp")) as folder:
        copy = Path(folder)
        for name in series.project_files(config.CHECKOUT, "rust", "selftests", "patches"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(config.CHECKOUT / name, copy / name)
        tree.git(copy, "init", "-q")
        victim = next(n for n in series.project_files(copy, "rust"))
        data = bytearray((copy / victim).read_bytes())
        data[-2] ^= 1
        (copy / victim).write_bytes(data)
        found = series.drift(copy, base.repo, base.commit, series.applied(base, copy))
    return [] if any(line.startswith(f"{victim}: differs") and series.REGEN in line
                     for line in found) else [f"a change in {victim} was not reported"]


def step_lint(tally, options):
    """nothing that warns finds anything: W=1, clippy, sparse, kernel-doc, rustdoc"""
    setup.packages("lint")
    linter = lint.Linter(options.tree)
    tally.judge("kernel-doc", linter.documented())
    tally.judge("compilers with W=1, and clippy", linter.compiled())
    tally.judge("rustdoc", linter.rustdoc())
    tally.judge("sparse", linter.sparse())


def step_build(tally, options):
    """the kernel with the series"""
    kernel = patched(options)
    ui.say(f"  {kernel.release}: {kernel.image}")
    tally.passes()


def tap(text, status, limit=PROGRAM_LIMIT):
    """(passed, skipped, failures) of a program that printed TAP and exited with `status`."""
    lines = re.findall(r"^(ok|not ok)\b *\d*(.*)$", text, re.M)
    failures = [f"not ok {name.strip()}" for verdict, name in lines
                if verdict == "not ok" and "# SKIP" not in name]
    skipped = sum("# SKIP" in name for _, name in lines)
    plan = re.search(r"^1\.\.(\d+)( # SKIP)?", text, re.M)
    if plan and plan.group(2):
        return 0, 1, []
    if not plan:
        failures.append("no TAP plan")
    elif int(plan.group(1)) != len(lines):
        failures.append(f"planned {plan.group(1)} tests, {len(lines)} reported")
    if not status:
        failures.append("did not run, or did not end")
    elif status in ("124", "143"):      # busybox's timeout leaves it at the signal
        failures.append(f"took more than {limit} s")
    elif status not in ("0", "4") and not failures:
        failures.append(f"exit status {status}")
    return len(lines) - skipped - sum(f.startswith("not ok") for f in failures), skipped, failures


def suite(programs, limit, setting=""):
    """The shell text that runs the programs; each leaves NAME.tap and NAME.status.

    With `setting`, a NAME=VALUE, in their environment.
    """
    return "".join(
        f"echo {p.name}\n"
        f"(cd {p.parent} && {f'export {setting} && ' if setting else ''}"
        f"exec timeout -k 5 {limit} ./{p.name}) >{p.name}.tap 2>&1\n"
        f"echo $? >{p.name}.status\n" for p in programs)


def judge_programs(tally, folder, programs, limit, quiet=False):
    """Count what the programs of one run left; with `quiet`, only what is wrong is printed."""
    for program in programs:
        output = folder / f"{program.name}.tap"
        passed, skipped, failures = tap(
            boot.read(output), boot.read(folder / f"{program.name}.status").strip(), limit)
        if skipped and not passed and not failures:
            # As on a kernel without kevent; this one is meant to have it.
            failures.append("skipped all of its tests")
        if failures or not quiet:
            ui.say(f"  {'FAIL' if failures else 'ok':5} {program.name}: {passed} passed"
                   + (f", {skipped} skipped" if skipped else ""))
        tally.passes(passed)
        tally.skipped += skipped
        for failure in failures:
            tally.fails(f"{program.name}: {failure} ({output})")


def repeat(tally, runs, one):
    """Call `one` with a Tally and the number of the run, for each run; its own if it is alone."""
    if runs == 1:
        return one(tally, 1)
    for run in range(1, runs + 1):
        own = Tally()
        try:
            one(own, run)
        except ui.Failure as failure:
            own.fails(failure)
        ui.say(f"  {'FAIL' if own.failed else 'ok':5} run {run} of {runs}: {own.counts()}")
        tally.adds(own)


def selftests(tally, options, name, bits=64, debugging="", only=(), many=""):
    """Build the selftests, run them as often as asked for, each time in a guest of its own, and
    judge them and the log.

    In the kernel `debugging`, one of build.KINDS, if that is given. `only` some of
    them, if any are named. With `many`, a setting that has them do much, they run for long.
    """
    machine = machine_of(options)
    if not machine.native:
        why = cross.why_not_programs(machine, bits)
    else:
        why = setup.why_not_32() if bits == 32 else ""
    if why:
        where = "" if machine.native else f" for {machine.name}"
        return tally.skips(f"{bits}-bit programs{where}: {why}")
    kernel = patched(options, debugging)
    programs = build.selftests(kernel, bits)
    if not programs:
        raise ui.Failure("there are no selftests", "TEST_GEN_PROGS is empty",
                         "see selftests/Makefile")
    if only:
        programs = [p for p in programs if p.name in only]
    limit = MANY_LIMIT if many else PROGRAM_LIMIT * (DEBUG_SLOWNESS if debugging else 1)
    total = limit * len(programs)
    commands = suite(programs, limit, many)
    extra = {}
    if debugging:
        extra = {"boot_limit": boot.BOOT_LIMIT * DEBUG_SLOWNESS, "memory": DEBUG_MEMORY}
    if debugging == "debug":
        extra["parameters"] = debug.PARAMETERS
        commands = debug.BEFORE + commands + debug.AFTER
        total += 2 * KMEMLEAK_LIMIT

    def one(tally, run):
        again = options.repeat > 1
        result = boot.run(kernel, f"{name}-{run}" if again else name, commands, total,
                          icount=options.icount,
                          silence=max(limit + 60, KMEMLEAK_LIMIT if debugging == "debug" else 0),
                          title=f"{machine.label(name)}: boot and run",
                          state=lambda folder: (boot.read(folder / "output").splitlines()
                                                or [""])[-1],
                          **extra)
        judge_programs(tally, result.folder, programs, limit, quiet=again)
        if debugging == "kcsan":
            tally.judge("KCSAN was on", debug.missing(result.folder, debug.KCSAN_STARTS))
            result, others = debug.races(result)
            ui.say(f"        {others} reports of races that kevent has no part in")
        if debugging == "debug":
            tally.judge("KASAN, lockdep and kmemleak were on", debug.aids(result.folder))
            tally.judge("no memory is lost", debug.kmemleak(result.folder))
            result = debug.log_only(result)
        clean_log(tally, result)

    repeat(tally, options.repeat, one)


def step_selftests(tally, options):
    """the kselftests in a guest"""
    selftests(tally, options, "selftests")


def step_selftests32(tally, options):
    """the same kselftests as 32-bit programs"""
    selftests(tally, options, "selftests32", bits=32)


def clean_log(tally, result):
    tally.judge("kernel log is clean",
                result.problems and [*result.problems, f"see {result.folder}/dmesg and console"])


def step_harsh(tally, options):
    """those selftests that are out to break something, in a kernel with KASAN and more"""
    selftests(tally, options, "harsh", debugging="debug", only=HARSH)


def step_demo(tally, options):
    """the demo in a guest: no event lost, clean log"""
    machine = machine_of(options)
    if not machine.native and (why := cross.why_not_rust(machine)):
        return tally.skips(f"the demo for {machine.name}: {why}")
    kernel = patched(options)
    result, (events, calls, lost) = demo.run(kernel, SHORT_DEMO, options.icount, DEMO_LIMIT)
    ui.say(f"  ok    {events} events, {calls} collecting system calls, {lost} lost")
    tally.passes()
    clean_log(tally, result)


def step_library(tally, options):
    """the C header, man pages, examples and kevent-stat, tried out in a guest"""
    machine = machine_of(options)
    if not machine.native and (why := cross.why_not_programs(machine, 64)):
        return tally.skips(f"programs for {machine.name}: {why}")
    clean_log(tally, library.run(tally, patched(options), options.icount))


def step_bench(tally, options):
    """costs in guest instructions: none more than 1 % above tools/bench/baseline.json"""
    old, tools = bench.baseline()
    if tools != bench.tools():
        return tally.skips(f"the baseline is of {tools}, this is {bench.tools()}: other tools, "
                           "other code")
    new = bench.measure(patched(options), bench.IDLE)
    ui.say(f"  {len(new)} rows, of which {len(old)} are compared")
    tally.judge("no cost has grown", bench.regressions(old, new))


def step_others(tally, options):
    """a program without kevent pays nothing for it in a kernel without CONFIG_KEVENT"""
    found = bench.others(options.tree)
    ui.say("\n".join(bench.others_table(found)))
    tally.judge("not one instruction more with CONFIG_KEVENT=n, but to find the system call",
                bench.others_differ(found))


def step_debug(tally, options):
    """the kselftests in a kernel with KASAN, lockdep and kmemleak"""
    selftests(tally, options, "debug", debugging="debug")


def step_debug32(tally, options):
    """the same kselftests as 32-bit programs, in that kernel"""
    selftests(tally, options, "debug32", bits=32, debugging="debug")


def step_kcsan(tally, options):
    """the kselftests in a kernel with KCSAN, which looks for data races in what is in C"""
    selftests(tally, options, "kcsan", debugging="kcsan")


def step_storm(tally, options):
    """ten million events, each of which is counted"""
    selftests(tally, options, "storm", only=["storm"], many=STORM)


def step_fuzz(tally, options):
    """ten million calls that make little sense, in the kernel with KASAN"""
    selftests(tally, options, "fuzz", debugging="debug", only=["fuzz"], many=FUZZ)


STEPS = {name.removeprefix("step_"): function for name, function in list(globals().items())
         if name.startswith("step_")}
#: Steps that build for an architecture: NAME for that of the host, ARCH-NAME for others.
ARCH_STEPS = ("build", "selftests", "selftests32", "demo", "library")


def on(machine, step):
    """A step, for that architecture."""
    def on_machine(tally, options):
        step(tally, argparse.Namespace(**{**vars(options), "arch": machine}))
    on_machine.__doc__ = f"{step.__doc__}, on {machine.name}"
    return on_machine


STEPS |= {machine.label(name): on(machine, STEPS[name]) for machine in arch.ALL.values()
          if not machine.native for name in ARCH_STEPS}
DEBUG_STEPS = ("debug", "debug32")
#: Steps that run only when they are asked for.
LONG_STEPS = DEBUG_STEPS + ("kcsan", "others", "storm", "fuzz")


def chosen(options):
    """The names of the steps to run."""
    if options.long and (options.steps or options.debug or options.arch):
        raise ui.Failure("--long runs every step", "so there is nothing to choose",
                         "scripts/test --long, or scripts/test STEP ...")
    named = list(dict.fromkeys([*options.steps, *(DEBUG_STEPS if options.debug else ())]))
    if options.arch:
        named = [options.arch.label(name) for name in named or ARCH_STEPS]
    for name in named:
        if name not in STEPS:
            raise ui.Failure(f"no step is called {name}", "", "scripts/test --list")
    return named or [name for name in STEPS if options.long or name not in LONG_STEPS]


def command(options):
    """Run the steps that were chosen; gives the exit status."""
    if options.list:
        for name, function in STEPS.items():
            ui.say(f"{name:17} {function.__doc__}"
                   + (" (takes long)" if name in LONG_STEPS else ""))
        return 0
    rows, total = [], Tally()
    for name in chosen(options):
        ui.say(f"\n== {name}: {STEPS[name].__doc__}")
        tally, start = Tally(), time.monotonic()
        try:
            STEPS[name](tally, options)
        except ui.Failure as failure:
            tally.fails(failure)
        except Exception as error:          # a mistake in the scripts fails one step only
            tally.fails(f"{name}: {type(error).__name__}: {error}")
            sys.excepthook(*sys.exc_info())
        if not tally.passed + tally.failed + tally.skipped:
            tally.fails(f"{name}: no test ran")
        rows.append((name, tally, ui.duration(time.monotonic() - start)))
        total.adds(tally)
    ui.say()
    for name, tally, elapsed in rows:
        ui.say(f"{'FAIL' if tally.failed else 'ok':5} {name:17} {elapsed:>7}  {tally.counts()}")
    ui.say(total.counts())
    return 1 if total.failed else 0
